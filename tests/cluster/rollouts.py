"""Rollouts on a real cluster, and users who ask all the time and never ask twice."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psutil
from kfp_flywheel.components.runtime.adapters.kserve.build import SERVICE
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.artifacts import Release
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.components.serving.client import infer
from kfp_flywheel.pipelines.traffic import Sent, send

from tests.canaries import roll
from tests.tiny import tiny_images

RATE = 60.0
QUICK: dict[str, object] = {
    "step_requests": 20,
    "error_margin": 0.1,
    "slow_margin": 0.3,
    "replays": 0,
    "max_seconds": 180.0,
    "ready_timeout_s": 90.0,
}


class Users:
    """What users were answered so far."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def failed(self, *versions: str) -> list[Sent]:
        """Requests that these versions, or nobody, failed to answer."""
        return [one for one in list(self.sent) if one.status != 200 and one.version in versions]

    def asked(self, version: str) -> int:
        return sum(one.version == version for one in list(self.sent))


@contextmanager
def users(world: World, endpoint: str, rate: float = RATE) -> Iterator[Users]:
    """Users ask at random times meanwhile; each asks once."""
    seen, over = Users(), threading.Event()
    url, images = world.serving.url(endpoint), tiny_images(120)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(send, url, endpoint, images, rate, 0, 0, seen.sent.append, over)
        try:
            yield seen
        finally:
            over.set()
            work.result()


def install(world: World, endpoint: str, champion: Release) -> None:
    """Make a release the first champion."""
    ended = roll(world, champion, None, f"{endpoint}-first", print, **QUICK, endpoint=endpoint)
    assert ended.decision == "promote"


def weights(world: World, endpoint: str) -> dict[str, int]:
    return {name: served.weight for name, served in world.serving.read(endpoint).versions.items()}


def services(world: World, endpoint: str) -> set[str]:
    """The InferenceServices that are left of an endpoint."""
    assert isinstance(world.serving, KServe)
    found = world.serving.objects.list(SERVICE, f"flywheel/endpoint={endpoint}")
    return {item["metadata"]["name"] for item in found if "deletionTimestamp" not in item["metadata"]}


def servers(endpoint: str, version: str) -> Iterator[psutil.Process]:
    """The processes of a version's model servers: pods live on this machine."""
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except psutil.Error:
            continue
        if (env.get("FLYWHEEL_NAME"), env.get("FLYWHEEL_VERSION")) == (endpoint, version):
            yield process


def answers(url: str, endpoint: str) -> str:
    """The version that answers now; empty for none."""
    with suppress(Exception):
        return infer(url, endpoint, tiny_images()[0], shadow=True).version
    return ""
