"""`flywheel doctor`: is everything there that a run needs? For each ✗ the command that mends it."""

import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ..components.runtime.config import Platform
from ..components.runtime.errors import FlywheelError
from ..components.runtime.wiring import World, connect
from .checks import Check, Probe

NEEDED_GB = 5
PROFILES = {
    "steps": ("kfp", "mlflow", "onnxruntime", "opencv-python-headless", "faster-coco-eval"),
    "train": ("ray", "torch", "ultralytics", "onnx"),
    "serve": ("kserve", "aiohttp", "onnxruntime"),
}


def examine(platform: Platform, root: Path, port: int) -> list[Check]:
    """Look at every backend of a platform, and at this machine. Each check stands for itself: none hides another."""
    world = connect(platform)
    probes: list[tuple[str, Probe]] = [
        ("python", _python),
        *_machine(platform, root, port),
        ("store", lambda: _store(world)),
        ("tracking", lambda: _tracking(world)),
    ]
    if platform.namespaces:
        from . import doctor_cluster

        probes += doctor_cluster.probes(world)
    if platform.telemetry.startswith("prometheus+"):
        probes.append(("telemetry", lambda: _telemetry(world)))
    if platform.steps_namespace:
        probes.append(("kubeflow", lambda: _kubeflow(world)))
    with ThreadPoolExecutor(len(probes)) as pool:  # most of the time is spent waiting
        return list(pool.map(lambda probe: _examined(*probe), probes))


def _examined(name: str, probe: Probe) -> Check:
    try:
        return probe()
    except FlywheelError as error:
        return Check(name, False, error.message, error.next)
    except ImportError as error:
        return Check(name, False, f"{error.name} is not installed", "make setup")


def _machine(platform: Platform, root: Path, port: int) -> Iterator[tuple[str, Probe]]:
    """What this machine has to have, for what it does itself."""
    here = {"steps": True, "train": not platform.jobs_namespace, "serve": not platform.serving_namespace}
    for profile in (profile for profile in PROFILES if here[profile]):
        yield profile, partial(_packages, profile)
    if here["train"]:
        yield "cpus", lambda: Check("cpus", True, f"{os.cpu_count()}")
        yield "disk", lambda: _disk(root)
    if here["serve"]:
        yield "serving", lambda: _serving(platform, port)


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info[:2] == (3, 11), found, "make setup, with Python 3.11 on the PATH")


def _packages(profile: str) -> Check:
    found, missing = [], []
    for name in PROFILES[profile]:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(profile, False, f"{', '.join(missing)} missing", "make setup")
    return Check(profile, True, ", ".join(found))


def _disk(root: Path) -> Check:
    existing = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    return Check(
        "disk", free >= NEEDED_GB, f"{free:.0f} GB free of {NEEDED_GB} GB needed", f"free some space at {existing}"
    )


def _store(world: World) -> Check:
    store, probe = world.store, uuid.uuid4().hex
    uri = store.put("doctor/probe", b"written once")
    if store.get(uri) != b"written once" or store.exists(f"doctor/{probe}"):
        return Check("store", False, f"{store.root} gives back other bytes than were written", "use another store")
    return Check("store", True, f"{store.root} is readable and writable")


def _tracking(world: World) -> Check:
    client, uri = world.mlflow, world.platform.tracking
    from mlflow.exceptions import MlflowException

    try:
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        what = str(error).partition("\n")[0]
        return Check("tracking", False, f"{uri}: {what}", "start MLflow there, or correct tracking")
    return Check("tracking", True, uri)


def _serving(platform: Platform, port: int) -> Check:
    if url := connect(platform).serving.url("detector"):
        return Check("serving", True, f"flywheel serve is at work: {url}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check("serving", False, f"port {port}: {error.strerror}", f"flywheel doctor --port {port + 1}")
    return Check("serving", True, f"port {port} is free for flywheel serve")


def _telemetry(world: World) -> Check:
    found = world.scraped()
    uri = world.platform.telemetry.removeprefix("prometheus+")
    return Check("telemetry", True, f"{uri} answers, and scrapes {found} pods of the namespace")


def _kubeflow(world: World) -> Check:
    found = world.runs.list(1)
    last = f"; the last run is {found[0].request.name}: {found[0].state}" if found else "; no run yet"
    return Check("kubeflow", True, f"Kubeflow Pipelines answers{last}")


def show(checks: list[Check]) -> None:
    """Print the checks for a person."""
    console = Console(highlight=False, soft_wrap=True)
    for check in checks:
        mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
        console.print(f"{mark} [bold]{check.name:9}[/] {escape(check.found)}")
        if not check.ok and check.next:
            console.print(f"            next: {escape(check.next)}")
