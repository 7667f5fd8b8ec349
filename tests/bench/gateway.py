"""`python -m tests.bench.gateway`: what the gateway adds to a request, and what the prediction log does.

Two ways are asked in turn, in the same run: other work on the machine hits both.
"""

import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import cv2
import httpx
import numpy as np
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.ports import Served
from kfp_flywheel.components.runtime.wiring import connect
from kfp_flywheel.components.serving.client import infer
from kfp_flywheel.components.serving.serve import serving
from kfp_flywheel.pipelines.traffic import send

from tests.tiny import tiny_images, tiny_release
from tests.waiting import wait_for

from .figures import Figure, median, publish

ROUNDS = 5
REQUESTS = 150
RATE, BLOCK = 20.0, 15
"""Requests a second, as the demo has them, and how many go one way before the other has its turn."""


def photographs(count: int = 20) -> list[bytes]:
    """JPEG files of 640 × 480 pixels with something in them to compress, the same ones each time."""
    rng = np.random.default_rng(0)
    coarse = (rng.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(count))
    return [
        cv2.imencode(".jpg", cv2.resize(image, (640, 480), interpolation=cv2.INTER_CUBIC))[1].tobytes()
        for image in coarse
    ]


def served(stack: ExitStack, folder: Path, log_share: float) -> tuple[str, str]:
    """Serve a tiny package; the gateway's address and the model server's own."""
    platform = Platform.local(folder).but(log_share=log_share)
    world = connect(platform)
    url = stack.enter_context(serving(platform))
    versions = {"v1": Served(release=tiny_release(world.store), weight=100)}
    world.serving.write(world.serving.read("detector").but(versions=versions, stable="v1"))
    wait_for(lambda: "v1" in (seen := world.serving.observe("detector")) and seen["v1"].ready)
    return url, world.serving.observe("detector")["v1"].url


def one_by_one(urls: list[str], images: list[bytes]) -> list[float]:
    """The median time of a request at each address, in ms, over kept connections: one client that waits."""
    seconds: list[list[float]] = [[] for _ in urls]
    with httpx.Client(timeout=60, trust_env=False) as client:
        for number in range(REQUESTS):
            for url, own in zip(urls, seconds, strict=True):
                start = time.perf_counter()
                infer(url, "detector", images[number % len(images)], client=client)
                own.append(time.perf_counter() - start)
    return [statistics.median(own[REQUESTS // 10 :]) * 1000 for own in seconds]


def at_random(urls: list[str], images: list[bytes]) -> list[float]:
    """The same for requests that come at random times."""
    seconds: list[list[float]] = [[] for _ in urls]
    for number in range(REQUESTS // BLOCK):
        for url, own in sorted(zip(urls, seconds, strict=True), reverse=number % 2 == 1):
            sent = send(url, "detector", images, RATE, BLOCK, 0, lambda _: None, threading.Event(), seed=number)
            assert all(one.status == 200 for one in sent)
            own += [one.seconds for one in sent]
    return [statistics.median(own) * 1000 for own in seconds]


def measure(through: str, logged: str, silent: str) -> list[Figure]:
    """What the gateway adds, and what keeping every request in the prediction log does to the next one."""
    one = [one_by_one([through, logged], tiny_images()) for _ in range(ROUNDS)]
    many = [at_random([through, logged], photographs()) for _ in range(ROUNDS)]
    log = [at_random([logged, silent], photographs()) for _ in range(ROUNDS)]
    direct, crowd, without = (statistics.median(pair[1] for pair in pairs) for pairs in (one, many, log))
    how = f"{RATE:g} requests/s of 640 × 480"
    return [
        median("gateway adds at p50", [a - b for a, b in one], "ms", "<=", 2, f"direct: {direct:.2f} ms, one client"),
        median("gateway adds at p50", [a - b for a, b in many], "ms", "<=", 2, f"direct: {crowd:.2f} ms, {how}"),
        median("p50 with a prediction log", [a / b for a, b in log], "×", "<=", 1.05, f"{without:.2f} ms, {how}"),
    ]


def figures() -> list[Figure]:
    """Serve the same package with and without a log, and ask both."""
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name, ExitStack() as stack:
        through, logged = served(stack, Path(name, "logged"), 1.0)
        _, silent = served(stack, Path(name, "silent"), 0.0)
        return measure(through, logged, silent)


if __name__ == "__main__":
    publish("gateway", figures())
