"""`flywheel doctor`: is everything there that a run needs? For each ✗ the command that mends it."""

import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ..components.runtime.config import Platform
from ..components.runtime.errors import FlywheelError
from ..components.runtime.wiring import connect

NEEDED_GB = 5
PROFILES = {
    "steps": ("kfp", "mlflow", "onnxruntime", "opencv-python-headless", "faster-coco-eval"),
    "train": ("ray", "torch", "ultralytics", "onnx"),
    "serve": ("kserve", "aiohttp", "onnxruntime"),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and the command that mends it."""

    name: str
    ok: bool
    found: str
    next: str = ""


def examine(platform: Platform, root: Path, port: int) -> list[Check]:
    """Look at every backend of a platform, and at this machine. Each check stands for itself: none hides another."""
    probes: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        *[(profile, lambda profile=profile: _packages(profile)) for profile in PROFILES],
        ("cpus", lambda: Check("cpus", True, f"{os.cpu_count()}")),
        ("disk", lambda: _disk(root)),
        ("store", lambda: _store(platform)),
        ("tracking", lambda: _tracking(platform)),
        ("serving", lambda: _serving(platform, port)),
    ]
    if platform.serving.startswith("kserve://") and platform.pods.scales:
        probes.append(("scaling", lambda: _scaling(platform)))
    checks = []
    for name, probe in probes:
        try:
            checks.append(probe())
        except FlywheelError as error:
            checks.append(Check(name, False, error.message, error.next))
        except ImportError as error:
            checks.append(Check(name, False, f"{error.name} is not installed", "make setup"))
    return checks


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


def _store(platform: Platform) -> Check:
    store, probe = connect(platform).store, uuid.uuid4().hex
    uri = store.put("doctor/probe", b"written once")
    if store.get(uri) != b"written once" or store.exists(f"doctor/{probe}"):
        return Check("store", False, f"{store.root} gives back other bytes than were written", "use another store")
    return Check("store", True, f"{store.root} is readable and writable")


def _tracking(platform: Platform) -> Check:
    client = connect(platform).mlflow
    from mlflow.exceptions import MlflowException

    try:
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        what = str(error).partition("\n")[0]
        return Check("tracking", False, f"{platform.tracking}: {what}", "start MLflow there, or correct tracking")
    return Check("tracking", True, platform.tracking)


def _serving(platform: Platform, port: int) -> Check:
    serving = connect(platform).serving
    url = serving.url("detector")
    if platform.serving.startswith("kserve://"):
        serving.read("detector")
        return Check("serving", True, f"{platform.serving} answers" + (f"; an endpoint is at {url}" if url else ""))
    if url:
        return Check("serving", True, f"flywheel serve is at work: {url}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check("serving", False, f"port {port}: {error.strerror}", f"flywheel doctor --port {port + 1}")
    return Check("serving", True, f"port {port} is free for flywheel serve")


def _scaling(platform: Platform) -> Check:
    if connect(platform).measures_pods():
        return Check("scaling", True, f"{platform.pods.min_replicas} to {platform.pods.most_replicas} pods a version")
    return Check(
        "scaling",
        False,
        "the cluster has no metrics API (metrics.k8s.io): no version gets more pods under load",
        "install metrics-server, or take max_replicas out of the platform file",
    )


def show(checks: list[Check]) -> None:
    """Print the checks for a person."""
    console = Console(highlight=False, soft_wrap=True)
    for check in checks:
        mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
        console.print(f"{mark} [bold]{check.name:9}[/] {escape(check.found)}")
        if not check.ok and check.next:
            console.print(f"            next: {escape(check.next)}")
