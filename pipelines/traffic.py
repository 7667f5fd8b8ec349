"""`flywheel traffic`: recorded images sent to an endpoint as many users would, and what came back, by version."""

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..components.runtime.config import Platform
from ..components.runtime.errors import UserError
from ..components.runtime.folder import images
from ..components.runtime.ports import ANSWERED_BY
from ..components.runtime.wiring import connect

CONNECTIONS = 500
TIMEOUT_S = 60.0
LOOK_S = 0.1
GRACE_S = 5.0
NOBODY = "none"
OUTPUTS = [{"name": name} for name in ("boxes", "scores", "classes")]


@dataclass(frozen=True)
class Sent:
    """One request and how it ended.

    Args:
        at: When it was due, in seconds since the epoch.
        version: Which version answered; `none` if nobody did.
        status: Of the answer; 0 without one.
        seconds: From when it was due to the end of its answer: a sender that is late hides nothing.
        problem: Why there was no answer.
    """

    at: float
    version: str
    status: int
    seconds: float
    problem: str = ""


def send(
    url: str,
    endpoint: str,
    contents: Sequence[bytes],
    rate: float,
    requests: int,
    seconds: float,
    on_answer: Callable[[Sent], None],
    stop: threading.Event,
    seed: int | None = None,
) -> list[Sent]:
    """Send encoded images at random times, whether or not earlier ones are answered. Nothing is sent again.

    Args:
        url: The gateway's address, without a trailing slash.
        contents: All are sent, in random order, before one is sent for the second time.
        rate: Requests a second, on average: a Poisson process.
        requests: How many, at most; 0 is without limit.
        seconds: How long, at most; 0 is without limit.
        on_answer: Is handed each request as it ends, in the thread that called.
        stop: Ends it early; what is not answered within some seconds then is left out.
        seed: Of the times and of the order.

    Returns:
        The requests in the order in which they ended.
    """
    rng = random.Random(seed)
    images = _shuffled(contents, rng)
    address, offset = f"{url}/v2/models/{endpoint}/infer", time.time() - time.monotonic()
    sent: list[Sent] = []

    async def ask(session: aiohttp.ClientSession, image: bytes, due: float) -> None:
        version, status, problem = await _ask(session, address, image)
        sent.append(Sent(due + offset, version, status, time.monotonic() - due, problem))
        on_answer(sent[-1])

    async def run() -> None:
        due = time.monotonic()
        ends = due + seconds if seconds else float("inf")
        started, work = 0, set[asyncio.Task[None]]()
        timeout, connector = aiohttp.ClientTimeout(total=TIMEOUT_S), aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while not requests or started < requests:
                due += rng.expovariate(rate)
                if not await _until(min(due, ends), stop) or due >= ends:
                    break
                task = asyncio.create_task(ask(session, next(images), due))
                started += 1
                work.add(task)
                task.add_done_callback(work.discard)
            while work and not stop.is_set():
                await asyncio.wait(work, timeout=LOOK_S)
            if work:
                await asyncio.wait(work, timeout=GRACE_S)

    asyncio.run(run())
    return sent


def _shuffled(contents: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    while True:
        yield from (contents[index] for index in rng.sample(range(len(contents)), len(contents)))


async def _until(due: float, stop: threading.Event) -> bool:
    """Sleep until then; whether nobody wants to stop. Also when it is late, answers get their turn."""
    while not stop.is_set():
        left = due - time.monotonic()
        await asyncio.sleep(min(max(left, 0), LOOK_S))
        if left <= LOOK_S:
            return True
    return False


async def _ask(session: aiohttp.ClientSession, address: str, image: bytes) -> tuple[str, int, str]:
    """The version that answers, the status, and why there is none. aiohttp repeats no POST by itself."""
    tensor = len(image).to_bytes(4, "little") + image
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tensor)}}
    head = json.dumps({"inputs": [given], "outputs": OUTPUTS, "parameters": {"binary_data_output": True}}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    try:
        async with session.post(address, data=head + tensor, headers=headers) as answer:
            content = await answer.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return NOBODY, 0, f"{type(error).__name__}: {error}".rstrip(": ")
    return answer.headers.get(ANSWERED_BY) or _version(answer, content), answer.status, ""


def _version(answer: aiohttp.ClientResponse, content: bytes) -> str:
    """Which version answered, in its own words: a gateway that is not ours does not say it."""
    try:
        length = int(answer.headers.get("inference-header-content-length", len(content)))
        return str(json.loads(content[:length])["model_version"])
    except (ValueError, KeyError, TypeError):
        return NOBODY


def summary(sent: Sequence[Sent]) -> dict[str, Any]:
    """By version: requests, their share, failures by status or kind of problem, percentiles of the good answers."""
    versions = {}
    for name in sorted({one.version for one in sent}):
        own = [one for one in sent if one.version == name]
        times = [one.seconds * 1000 for one in own if one.status == 200]
        percentiles = np.percentile(times, (50, 95, 99)).round(1).tolist() if times else (None, None, None)
        versions[name] = {
            "requests": len(own),
            "share": round(len(own) / len(sent), 4),
            "failures": dict(sorted(Counter(_failure(one) for one in own if one.status != 200).items())),
            **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
        }
    return {"requests": len(sent), "failed": sum(one.status != 200 for one in sent), "versions": versions}


def _failure(sent: Sent) -> str:
    return str(sent.status) if sent.status else sent.problem.partition(":")[0]


def show(found: dict[str, Any]) -> None:
    """Print a summary as a table."""
    table = Table("version", "requests", "share", "failures", "p50 ms", "p95 ms", "p99 ms")
    for name, version in found["versions"].items():
        failures = ", ".join(f"{count} × {code}" for code, count in version["failures"].items()) or "none"
        times = ("–" if version[key] is None else f"{version[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
        table.add_row(name, str(version["requests"]), f"{version['share']:.1%}", failures, *times)
    Console().print(table if found["requests"] else "nothing was sent")


class _Files(Sequence[bytes]):
    """Files, each read when it is its turn: recorded images may be more than fits into memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._paths[index].read_bytes()
        except OSError as error:
            raise UserError(f"{self._paths[index]} cannot be read: {error.strerror}.", "leave it out") from error


class _Live:
    """What has come back so far."""

    def __init__(self) -> None:
        self.answers, self.failures = Counter[str](), Counter[str]()

    def add(self, sent: Sent) -> None:
        self.answers[sent.version] += 1
        self.failures[sent.version] += sent.status != 200

    def table(self) -> Table:
        table = Table("version", "requests", "failed")
        for name, count in sorted(self.answers.copy().items()):
            table.add_row(name, str(count), str(self.failures[name]))
        return table


def drive(
    folder: Path, endpoint: str, rate: float, requests: int, seconds: float, seed: int | None, platform: Platform
) -> tuple[dict[str, Any], bool]:
    """Send the images of a folder to an endpoint, and show meanwhile what comes back.

    Returns:
        The summary, and whether Ctrl-C ended it.

    Raises:
        UserError: The folder has no image, or nobody serves the endpoint.
    """
    files = _Files(list(images(folder, (f"{os.path.realpath(folder)}/",))))
    if not len(files):
        raise UserError(f"{folder} has no image in it.", f"ls {folder}")
    url = connect(platform).serving.url(endpoint)
    if not url:
        raise UserError(f"nobody serves endpoint {endpoint} at the moment.", "flywheel serve")
    seen, stop, interrupted = _Live(), threading.Event(), False
    console = Console(stderr=True)
    with Live(get_renderable=seen.table, console=console, transient=True), ThreadPoolExecutor(1) as thread:
        work = thread.submit(send, url, endpoint, files, rate, requests, seconds, seen.add, stop, seed)
        try:
            sent = work.result()
        except KeyboardInterrupt:
            interrupted = True
            stop.set()
            sent = work.result()
    return summary(sent), interrupted
