"""`make bench-cluster`: what the adapters of a cluster cost, on a real one that is brought up for it."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfp_flywheel.components.rollout.ready import until_it_answers
from kfp_flywheel.components.rollout.stage import golden_asker
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.kubernetes import Objects, connect
from kfp_flywheel.components.runtime.adapters.rayjob.build import RAYJOB
from kfp_flywheel.components.runtime.adapters.rayjob.jobs import RayJobs
from kfp_flywheel.components.runtime.artifacts import ModelPackage
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import JobFailed
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.ports import JobSpec
from kfp_flywheel.components.runtime.wiring import connect as open_world
from kfp_flywheel.pipelines.demo import digits
from kubernetes import client

from tests.cluster import images
from tests.cluster.control import NODE_IP, ControlPlane
from tests.cluster.fixtures import a_namespace, environment, platform_on, platform_without_pods
from tests.cluster.node import Node
from tests.cluster.places import Places
from tests.cluster.prometheus import Prometheus
from tests.cluster.waiter import NOWHERE, waiting
from tests.releases import release, with_champion
from tests.servers import s3
from tests.training import prepare, step
from tests.waiting import wait_for

from . import cluster_canary, commands
from .figures import Figure, median, publish

KUBEFLOW = f"kfp+{os.environ['FLYWHEEL_KFP_HOST']}" if "FLYWHEEL_KFP_HOST" in os.environ else ""
EVENTS = 10_500  # some are seen only in what is read again every few seconds
FOLLOWER = """
import sys, psutil
from kfp_flywheel.components.runtime.adapters.kubernetes import Objects, connect
from kfp_flywheel.components.runtime.adapters.rayjob.build import RAYJOB
seen = 0
for found in Objects(connect(), sys.argv[1]).follow(RAYJOB, "followed", 3):
    if found is None:
        break
    seen += 1
    if seen in (1, 1000):
        print("memory", psutil.Process().memory_info().rss, flush=True)
print("memory", psutil.Process().memory_info().rss, "after", seen, flush=True)
"""


@contextmanager
def a_cluster(figures: list[Figure]) -> Iterator[Node]:
    """One from nothing, and its time; gone at the end."""
    plane = ControlPlane(Places.usual(), lambda line: None)
    node = Node(plane)
    if plane.processes.find("kube-apiserver"):
        raise SystemExit("error: a cluster is up; next: make cluster-down")
    try:
        start = time.perf_counter()
        plane.up()
        figures.append(median("control plane from nothing", [time.perf_counter() - start], "s", "<=", 25))
        node.up()
        os.environ["KUBECONFIG"] = str(plane.places.kubeconfig)
        yield node
    finally:
        Prometheus(plane).down(wipe=True)
        node.down()
        plane.down(wipe=True)


def submitting(namespace: str) -> Figure:
    """From the call of submit until the API server has the RayJob."""
    jobs, samples = RayJobs(namespace, NOWHERE), []
    for number in range(10):
        start = time.perf_counter()
        jobs.submit(waiting(f"submitted-{number}"))
        samples.append(time.perf_counter() - start)
        jobs.cancel(f"submitted-{number}")
    return median("submit to RayJob created", samples, "s", "<=", 0.5)


def ending(namespace: str) -> Figure:
    """From SIGTERM to a waiting step until its RayJob is deleted."""
    objects, samples = Objects(connect(), namespace), []
    for number in range(5):
        name = f"ended-{number}"
        command = [sys.executable, "-m", "tests.cluster.waiter", namespace, name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as at:
            assert at.stdout is not None
            next(line for line in at.stdout if "waits for a node" in line)
            start = time.perf_counter()
            at.terminate()
            while (found := objects.get(RAYJOB, name)) and not found["metadata"].get("deletionTimestamp"):
                pass
            samples.append(time.perf_counter() - start)
    return median("SIGTERM to RayJob deleted", samples, "s", "<=", 1)


def failing(namespace: str, platform: Platform) -> Figure:
    """From KubeRay's word that a job failed until the step's error is there, its pods and log read."""
    jobs, objects, samples = RayJobs(namespace, platform.pods), Objects(connect(), namespace), []
    for number in range(3):
        name, failed = f"failed-{number}", list[float]()

        def watch(name: str = name, failed: list[float] = failed) -> None:
            for found in objects.follow(RAYJOB, name, 3):
                if found is None or found.get("status", {}).get("jobDeploymentStatus") == "Failed":
                    failed.append(time.perf_counter())
                    return

        jobs.submit(JobSpec(name, "tests.adapters.program", "fail", "1", platform.images["train"], deadline_s=280))
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            jobs.wait(name, lambda line: None)
        except JobFailed:
            samples.append(time.perf_counter())
        watcher.join()
        samples[-1] -= failed[0]
        jobs.cancel(name)
    return median("failure seen to error shown", samples, "s", "<=", 2)


def serving(platform: Platform, folder: Path) -> Figure:
    """From apply until the gateway answers with the demo's model as its trainer saw; the image is on the node."""
    data = digits.write(folder / "digits", {"train": 24, "val": 8, "test": 40}, size=160)
    here = platform.but(jobs="local://", tracking=f"sqlite:///{folder}/mlflow.db")
    prepare(folder, data, here)
    step(folder, platform=here, epochs=1, image_size=160)
    world, samples = open_world(platform), []
    package = ModelPackage.read(folder / "package.json")
    uri = keep(world.store, package)
    for number in range(1, 6):
        new = release(str(number), package.id).but(package_uri=uri)
        (folder / str(number)).mkdir()
        ask = golden_asker(world.store, new, "detector", folder / str(number))
        start = time.perf_counter()
        world.serving.write(with_champion(world.serving.read("detector"), new))
        until_it_answers(world.serving, "detector", f"v{number}", new, 120, ask, lambda line: None)
        samples.append(time.perf_counter() - start)
    first = f"the first one, whose image was pulled: {samples[0]:.1f} s"
    return median("InferenceService applied to servable", samples[1:], "s", "<=", 10, first)


def following(namespace: str) -> Figure:
    """Growth of a process that follows a RayJob, between its 1,000th and last event."""
    jobs, objects = RayJobs(namespace, NOWHERE), Objects(connect(), namespace)
    jobs.submit(waiting("followed"))
    with subprocess.Popen([sys.executable, "-c", FOLLOWER, namespace], stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        follower.stdout.readline()

        def change(number: int) -> None:
            change = {"metadata": {"annotations": {"bench": str(number)}}}
            objects.api.patch_namespaced_custom_object(*objects.at(RAYJOB), "followed", change)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(change, range(EVENTS)))
        jobs.cancel("followed")
        early, late = follower.stdout.readline().split(), follower.stdout.readline().split()
    memory, growth = int(early[1]) / 2**20, (int(late[1]) - int(early[1])) / 2**20
    peer = f"{late[3]} events; {memory:.0f} MiB at the 1,000th"
    return Figure("memory gained over watch events", growth, "MiB", "<=", 2, peer)


def main() -> None:
    figures: list[Figure] = []
    with a_cluster(figures) as node, s3(NODE_IP) as store, tempfile.TemporaryDirectory() as folder:
        api, scraper = connect(), Prometheus(node.plane)
        scraper.up()
        with a_namespace(api) as namespace, a_namespace(api) as empty:
            platform = platform_on(
                namespace, store, train=environment(node.places), serve=images.built(node.places, "serve")
            )
            nowhere = platform_without_pods(empty).but(
                store=f"file://{folder}/store", tracking=f"sqlite:///{folder}/mlflow.db"
            )
            measured: list[Callable[[], list[Figure]]] = [
                lambda: [submitting(namespace)],
                lambda: [ending(namespace)],
                lambda: [following(namespace)],
                lambda: [serving(platform, Path(folder))],
                lambda: [failing(namespace, platform)],
                lambda: commands.figures(platform.but(runs=KUBEFLOW)),
                *cluster_canary.figures(open_world(platform), KServe(nowhere)),
            ]
            for several in measured:
                for figure in several():
                    figures.append(figure)
                    print(f"{figure.name}: {figure.value:.3g} {figure.unit}", flush=True)
        wait_for(lambda: namespace not in _namespaces(api), 120, "the namespace to go")
    publish("cluster", figures)


def _namespaces(api: Any) -> list[str]:
    return [found.metadata.name for found in client.CoreV1Api(api).list_namespace().items]


if __name__ == "__main__":
    main()
