"""RayJobs in real pods. The pods run this repository's own environment, mounted from the node."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from kfp_flywheel.components.runtime.adapters.rayjob.jobs import RayJobs
from kfp_flywheel.components.runtime.config import Pods
from kfp_flywheel.components.runtime.errors import FlywheelError, JobFailed
from kfp_flywheel.components.runtime.ports import JobSpec

from . import images
from .control import ControlPlane
from .node import Node

REPO = Path(__file__).parents[2]
ENVIRONMENT = Path(sys.prefix)
MOUNTED = tuple(sorted({str(REPO), str(ENVIRONMENT), sys.base_prefix}))


@pytest.fixture(scope="session")
def node(plane: ControlPlane) -> Node:
    """A node for real pods."""
    if os.geteuid() != 0:
        pytest.skip("pods need root")
    node = Node(plane)
    node.up()
    return node


def pods(**changes: Any) -> Pods:
    """This repository's environment in the base image."""
    path = f"{ENVIRONMENT}/bin:/usr/local/bin:/usr/bin:/bin"
    return Pods(
        image_pull_policy="Never",
        env={"PATH": path, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"},
        host_paths=MOUNTED,
        head_memory="2Gi",
        worker_memory="2Gi",
        shared_memory="256Mi",
        wait_s=60,
        **changes,
    )


def job(what: str) -> JobSpec:
    return JobSpec("job-1", "tests.adapters.program", what, "h1", images.BASE, deadline_s=280)


def test_a_job_runs_to_its_end_and_its_lines_are_heard(node: Node, namespace: str) -> None:
    jobs, lines = RayJobs(namespace, pods()), list[str]()
    jobs.submit(job("end"))
    jobs.wait("job-1", lines.append)
    assert lines.count("at work") == 1
    assert lines.count("done") == 1


def test_a_job_that_fails_says_why(node: Node, namespace: str) -> None:
    jobs, lines = RayJobs(namespace, pods()), list[str]()
    jobs.submit(job("fail"))
    with pytest.raises(FlywheelError) as found:
        jobs.wait("job-1", lines.append)
    assert isinstance(found.value, JobFailed)
    assert "AppFailed" in str(found.value)
    assert "the reason stands here" in str(found.value)
