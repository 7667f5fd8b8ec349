"""A step that waits for a job which never gets a node: `python -m tests.cluster.waiter NAMESPACE NAME`."""

import sys
from typing import Any

from kfp_flywheel.components.runtime.adapters.rayjob.jobs import RayJobs
from kfp_flywheel.components.runtime.config import Pods
from kfp_flywheel.components.runtime.ports import JobSpec

from .images import REGISTRY

NOWHERE = Pods(node_selector={"flywheel/no-such-node": "yes"}, wait_s=0)
IMAGE = f"{REGISTRY}/train@sha256:{'0' * 64}"


def waiting(name: str = "train-1", hash: str = "h1", **changes: Any) -> JobSpec:
    """A job that is never begun: neither its image nor its node is there."""
    return JobSpec(name, "tests.adapters.program", "file:///nowhere", hash, IMAGE, **changes)


def main(namespace: str, name: str) -> None:
    jobs = RayJobs(namespace, NOWHERE)
    jobs.submit(waiting(name))
    print("submitted", flush=True)
    jobs.wait(name, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
