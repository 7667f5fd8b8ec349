"""What goes wrong in pods. After each the reason was told, and nothing is left but what is meant to be looked at."""

import threading
import time
from pathlib import Path

import pytest
from kfp_flywheel.components.recipes.detection.checkpoints import saved
from kfp_flywheel.components.runtime.adapters.kubernetes import connect as connect_api
from kfp_flywheel.components.runtime.adapters.rayjob.jobs import RayJobs
from kfp_flywheel.components.runtime.artifacts import ModelPackage
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import JobFailed, PlatformError
from kfp_flywheel.components.runtime.ports import JobSpec
from kfp_flywheel.components.runtime.wiring import connect
from kubernetes import client

from tests.servers import S3
from tests.training import prepare, step
from tests.waiting import wait_for

from .control import ControlPlane
from .images import REGISTRY

AWAY_S = 20


def job(what: str, image: str) -> JobSpec:
    return JobSpec("job", "tests.adapters.program", what, "1", image, deadline_s=280)


@pytest.fixture
def jobs(cluster_platform: Platform, namespace: str) -> RayJobs:
    return RayJobs(namespace, cluster_platform.pods)


def left(namespace: str) -> list[str]:
    """RayJobs, Ray clusters, and pods of theirs that still work."""
    custom, core = client.CustomObjectsApi(connect_api()), client.CoreV1Api(connect_api())
    found = [
        f"{plural}/{item['metadata']['name']}"
        for plural in ("rayjobs", "rayclusters")
        for item in custom.list_namespaced_custom_object("ray.io", "v1", namespace, plural)["items"]
    ]
    pods = core.list_namespaced_pod(namespace, label_selector="ray.io/cluster").items
    return found + [f"pods/{pod.metadata.name}" for pod in pods]


def test_an_image_that_cannot_be_pulled_is_named(jobs: RayJobs, namespace: str) -> None:
    image = f"{REGISTRY}/nothing@sha256:{'1' * 64}"
    jobs.submit(job("work", image))
    with pytest.raises(PlatformError, match=r"nothing@sha256:1+ cannot be pulled: .*not found") as found:
        jobs.wait("job", print)
    assert "images.train" in found.value.next
    wait_for(lambda: left(namespace) == [], 60)


@pytest.mark.faults
def test_a_job_that_eats_its_memory_fails_for_that_reason(jobs: RayJobs, namespace: str, train_image: str) -> None:
    jobs.submit(job("eat", train_image))
    with pytest.raises(JobFailed, match=r"OutOfMemoryError: .* low on memory"):
        jobs.wait("job", print)
    wait_for(lambda: left(namespace) == ["rayjobs/job"], 60)  # to be looked at


@pytest.mark.faults
def test_lines_are_heard_once_and_in_order_though_the_api_server_restarts(
    plane: ControlPlane, jobs: RayJobs, train_image: str
) -> None:
    lines: list[str] = []

    def restart() -> None:
        wait_for(lambda: "line 20" in lines)
        plane.processes.stop("kube-apiserver")
        plane.api_server()

    restarter = threading.Thread(target=restart)
    jobs.submit(job("count", train_image))
    restarter.start()
    jobs.wait("job", lines.append)
    restarter.join()
    assert [line for line in lines if line.startswith("line ")] == [f"line {number}" for number in range(80)]
    assert lines.count("done") == 1


@pytest.mark.faults
def test_a_training_that_loses_its_worker_and_then_its_store_ends_as_if_nothing_had_been(
    cluster_platform: Platform, tracking: str, s3: S3, digits: Path, namespace: str, tmp_path: Path
) -> None:
    settings = {"epochs": 10, "cpus_per_worker": 1}
    prepare(tmp_path / "here", digits)
    step(tmp_path / "here", **settings)

    there = cluster_platform.but(tracking=tracking)
    prepare(tmp_path / "there", digits, there)
    store, core = connect(there).store, client.CoreV1Api(connect_api())
    lost: list[str] = []

    def epochs() -> int:
        keys = [key for key in store.list("training/") if "/checkpoints/" in key]
        return len(saved(store, keys[0].rpartition("/")[0] + "/")) if keys else 0

    def sabotage() -> None:
        wait_for(lambda: epochs() >= 2)
        for pod in core.list_namespaced_pod(namespace, label_selector="ray.io/node-type=worker").items:
            core.delete_namespaced_pod(pod.metadata.name, namespace, grace_period_seconds=0)
            lost.append(pod.metadata.name)
        before = epochs()
        wait_for(lambda: epochs() > before)
        with s3.away():
            time.sleep(AWAY_S)  # the fault itself
        lost.append(f"store after epoch {before + 1}")

    saboteur = threading.Thread(target=sabotage)
    saboteur.start()
    step(tmp_path / "there", platform=there, **settings)
    saboteur.join()
    assert len(lost) == 2
    ours, theirs = (ModelPackage.read(tmp_path / name / "package.json") for name in ("here", "there"))
    assert ours.checkpoint.digest == theirs.checkpoint.digest
    assert {name: blob.sha256 for name, blob in ours.files.items()} == {
        name: blob.sha256 for name, blob in theirs.files.items()
    }
    wait_for(lambda: left(namespace) == [], 60)
