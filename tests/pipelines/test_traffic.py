"""Traffic comes as it was asked for, nothing is asked twice, and every answer is counted."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.ports import Served
from kfp_flywheel.components.runtime.wiring import connect
from kfp_flywheel.components.serving.serve import serving
from kfp_flywheel.pipelines.traffic import Sent, send, summary

from tests.servers import free_port
from tests.tiny import tiny_images, tiny_release
from tests.waiting import wait_for

CONTENTS = [bytes([number]) * (number + 1) for number in range(10)]
NEVER = threading.Event()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def nothing(sent: Sent) -> None:
    pass


@contextmanager
def endpoint(handler: Handler) -> Iterator[str]:
    """Something that answers as an endpoint does, in a thread of its own; gives its address."""
    loop, started, address = asyncio.new_event_loop(), threading.Event(), []

    async def run() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v2/models/e/infer", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()
        return runner

    runner = loop.create_task(run())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        assert started.wait(20)
        yield address[0]
    finally:
        asyncio.run_coroutine_threadsafe(runner.result().cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def image_of(request: web.Request) -> bytes:
    head = int(request.headers["inference-header-content-length"])
    return (await request.read())[head + 4 :]


def test_every_image_is_sent_before_one_is_sent_again_and_each_once() -> None:
    came: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        came.append(await image_of(request))
        return web.Response(headers={"x-flywheel-version": "v1"})

    told: list[Sent] = []
    with endpoint(answer) as url:
        sent = send(url, "e", CONTENTS, 1000, 25, 0, told.append, NEVER, seed=1)
    assert told == sent
    assert Counter(came).keys() == set(CONTENTS)
    assert sorted(Counter(came).values()) == [2] * 5 + [3] * 5
    assert {(one.version, one.status) for one in sent} == {("v1", 200)}


def test_a_slow_answer_does_not_hold_up_the_next_request() -> None:
    at_work = 0
    all_here = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        nonlocal at_work
        at_work += 1
        if at_work == 50:
            all_here.set()
        await all_here.wait()
        return web.Response()

    with endpoint(answer) as url:
        sent = send(url, "e", CONTENTS, 1000, 50, 0, nothing, NEVER)
    assert len(sent) == 50


def test_requests_come_at_random_times_of_the_given_rate() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    with endpoint(answer) as url:
        runs = [send(url, "e", CONTENTS, 500, 400, 0, nothing, NEVER, seed=3) for _ in range(2)]
        by_time = send(url, "e", CONTENTS, 500, 0, 0.5, nothing, NEVER, seed=3)
    first, again = (sorted(one.at for one in run) for run in runs)
    gaps = [later - earlier for earlier, later in pairwise(first)]
    mean = sum(gaps) / len(gaps)
    assert 0.8 / 500 < mean < 1.2 / 500  # four standard errors
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 0.8 < spread / mean < 1.2, "as of a Poisson process"
    assert again[-1] - again[0] == pytest.approx(first[-1] - first[0], abs=1e-4), "a seed gives the same times"
    assert max(one.at for one in by_time) - min(one.at for one in by_time) <= 0.5


def test_what_fails_is_counted_and_not_asked_again() -> None:
    came = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal came
        came += 1
        if came % 3 == 0:
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=500 if came % 3 == 1 else 200, headers={"x-flywheel-version": "v2"})

    with endpoint(answer) as url:
        sent = send(url, "e", CONTENTS, 1000, 30, 0, nothing, NEVER)
    assert came == 30
    found = summary(sent)
    assert (found["requests"], found["failed"]) == (30, 20)
    assert found["versions"]["none"]["failures"] == {"ServerDisconnectedError": 10}
    assert found["versions"]["v2"]["failures"] == {"500": 10}
    assert found["versions"]["v2"]["share"] == pytest.approx(2 / 3, abs=1e-3)
    assert 0 < found["versions"]["v2"]["p50_ms"] <= found["versions"]["v2"]["p99_ms"]
    nobody = send(f"http://127.0.0.1:{free_port()}", "e", CONTENTS, 1000, 3, 0, nothing, NEVER)
    assert [(one.version, one.status) for one in nobody] == [("none", 0)] * 3


def test_a_gateway_that_does_not_say_who_answered_is_read_in_the_answer() -> None:
    async def answer(_: web.Request) -> web.Response:
        head = json.dumps({"model_name": "e", "model_version": "v7", "outputs": []}).encode()
        return web.Response(body=head + b"\0\1", headers={"inference-header-content-length": str(len(head))})

    with endpoint(answer) as url:
        assert [one.version for one in send(url, "e", CONTENTS, 1000, 2, 0, nothing, NEVER)] == ["v7", "v7"]


def test_it_ends_when_it_is_told_to() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    stop, told = threading.Event(), list[Sent]()

    def tell(sent: Sent) -> None:
        told.append(sent)
        if len(told) == 5:
            stop.set()

    with endpoint(answer) as url:
        sent = send(url, "e", CONTENTS, 200, 0, 0, tell, stop)
        assert 5 <= len(sent) < 100
        assert send(url, "e", CONTENTS, 0.001, 0, 0, nothing, stop) == []


def command(folder: Path, root: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "kfp_flywheel.pipelines.cli", "traffic", str(folder), "--root", str(root), *flags]


def traffic(folder: Path, root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, root, *flags), capture_output=True, text=True, timeout=120)


def test_the_command_asks_a_real_endpoint_and_fails_if_a_request_does(tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    assert "has no image in it" in traffic(folder, root).stderr
    for number, image in enumerate(tiny_images()):
        (folder / "below" / f"{number}.png").write_bytes(image)
    unserved = traffic(folder, root)
    assert (unserved.returncode, "next:  flywheel serve" in unserved.stderr) == (2, True)
    platform = Platform.local(root)
    world = connect(platform)
    state = world.serving.read("detector")
    versions = {"v1": Served(release=tiny_release(world.store), weight=100)}
    world.serving.write(state.but(versions=versions, stable="v1"))
    with serving(platform):
        wait_for(lambda: "v1" in (seen := world.serving.observe("detector")) and seen["v1"].ready, 60)
        done = traffic(folder, root, "--requests", "30", "--rate", "200", "--seed", "1", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["requests"], found["failed"]) == (30, 0)
        assert found["versions"]["v1"]["share"] == 1
        (folder / "broken.jpg").write_bytes(b"no image")
        failed = traffic(folder, root, "--requests", "5", "--rate", "200")
        assert failed.returncode == 1
        assert "1 × 400" in failed.stdout
        before = world.telemetry.counts("detector")["v1"].requests
        with subprocess.Popen(command(folder, root, "--seconds", "0", "--json"), stdout=subprocess.PIPE) as endless:
            wait_for(lambda: world.telemetry.counts("detector")["v1"].requests > before + 3, 60)
            endless.send_signal(signal.SIGINT)
            output = endless.communicate(timeout=60)[0]
        assert endless.returncode == 130
        assert json.loads(output)["requests"] > 3
