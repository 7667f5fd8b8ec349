"""Which version gets a request, what follows from a wanted state, and what clients see when a version is gone."""

import asyncio
from collections import Counter

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.serving.gateway import MAX_COPIES, Backend, Gateway, Route
from kfp_flywheel.components.serving.reconciler import Key, plan

from tests.servers import free_port

KEYS: list[Key] = [("v1", "a"), ("v2", "b"), ("v2", "c"), ("v3", "d")]
wanted_states = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 100))
running_states = st.dictionaries(st.sampled_from(KEYS), st.booleans())
befores = st.none() | st.sampled_from(KEYS)


@given(wanted=wanted_states, running=running_states, before=befores)
def test_no_plan_sends_traffic_where_it_must_not_go(
    wanted: dict[Key, int], running: dict[Key, bool], before: Key | None
) -> None:
    steps = plan(wanted, running, before)
    for key, weight in steps.route.items():
        assert running[key], "not ready"
        assert weight > 0
        assert wanted.get(key, 0) > 0 or (key == before and key not in wanted), "neither wanted nor the former stable"
        assert key not in steps.stop
    weighted = {key for key, weight in wanted.items() if weight > 0}
    if any(running.get(key) for key in weighted):
        assert set(steps.route) == {key for key in weighted if running.get(key)}
    if before in running and running[before] and before not in wanted and weighted and not steps.settled:
        assert before not in steps.stop, "the former stable goes on until its successor is ready"


@given(wanted=wanted_states, before=befores)
def test_plans_come_to_rest(wanted: dict[Key, int], before: Key | None) -> None:
    """Whatever runs at first: once all that was started is ready, exactly what is wanted runs."""
    running = {KEYS[0]: True, KEYS[1]: False}
    for _ in range(3):
        steps = plan(wanted, running, before)
        running = {key: True for key in {**running, **dict.fromkeys(steps.start, False)} if key not in steps.stop}
    assert running.keys() == wanted.keys()
    final = plan(wanted, running, before)
    assert (final.start, final.stop, final.settled) == (frozenset(), frozenset(), True)


def test_a_canary_that_was_taken_back_never_serves_again() -> None:
    """Not even when stable is down at that very moment."""
    stable, canary = KEYS[0], KEYS[1]
    steps = plan({stable: 100}, {stable: False, canary: True}, before=stable)
    assert steps.route == {}
    assert steps.stop == {canary}


@given(weights=st.lists(st.integers(1, 100), min_size=1, max_size=4), rolls=st.integers(100, 400))
def test_requests_divide_as_the_weights_say(weights: list[int], rolls: int) -> None:
    backends = {Backend(f"v{n}", ""): weight for n, weight in enumerate(weights)}
    route = Route("v0", backends)
    drawn = Counter(route.pick((n + 0.5) / rolls) for n in range(rolls))
    for backend, weight in backends.items():
        assert abs(drawn[backend] - rolls * weight / sum(weights)) <= 1


@given(roll=st.floats(0, 1, exclude_max=True), weights=st.lists(st.integers(1, 100), min_size=2, max_size=4))
def test_a_version_that_is_left_out_is_never_picked(roll: float, weights: list[int]) -> None:
    backends = {Backend(f"v{n}", ""): weight for n, weight in enumerate(weights)}
    first = next(iter(backends))
    assert Route("v0", backends).pick(roll, but=first) not in (first, None)
    assert Route("v0", {first: 1}).pick(roll, but=first) is None


def dead_address() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def talk(dead_is_stable: bool, requests: int) -> tuple[Counter[tuple[int, str]], str]:
    """Ask a gateway whose two versions share the traffic, one of them dead: counts by code and version, and metrics."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application()
    app.router.add_post("/v2/models/e/infer", answer)
    backend = web.AppRunner(app)
    await backend.setup()
    await web.TCPSite(backend, "127.0.0.1", 0).start()
    gateway = Gateway()
    runner, port = await gateway.start("127.0.0.1", 0)
    alive = Backend("alive", f"http://127.0.0.1:{backend.addresses[0][1]}")
    dead = Backend("dead", dead_address())
    gateway.routes["e"] = Route("dead" if dead_is_stable else "alive", {alive: 50, dead: 50})
    seen: Counter[tuple[int, str]] = Counter()
    try:
        async with aiohttp.ClientSession() as session:
            for number in range(requests):
                body = bytes([number % 256]) * number
                async with session.post(f"http://127.0.0.1:{port}/v2/models/e/infer", data=body) as got:
                    content = await got.read()
                    seen[got.status, got.headers["x-flywheel-version"]] += 1
                    assert got.status != 200 or content == body, "the body is forwarded untouched"
            async with session.get(f"http://127.0.0.1:{port}/metrics") as got:
                metrics = await got.text()
    finally:
        await runner.cleanup()
        await backend.cleanup()
    assert alive.at_work == dead.at_work == 0
    return seen, metrics


def test_a_dead_canary_is_seen_by_the_client_and_counted() -> None:
    seen, metrics = asyncio.run(talk(dead_is_stable=False, requests=60))
    assert set(seen) == {(200, "alive"), (502, "dead")}
    assert f'requests_total{{code="502",endpoint="e",version="dead"}} {seen[502, "dead"]}.0' in metrics


def test_a_stable_version_without_a_connection_is_stood_in_for_but_counted() -> None:
    seen, metrics = asyncio.run(talk(dead_is_stable=True, requests=60))
    assert seen == {(200, "alive"): 60}
    assert 'requests_total{code="502",endpoint="e",version="dead"}' in metrics


async def shadowed(requests: int) -> tuple[Counter[int], list[bytes], str]:
    """Ask a gateway that copies to a version which answers 500, after all was asked: what clients saw, what was
    copied, and metrics."""
    copied: list[bytes] = []
    answers = asyncio.Event()

    async def stable(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def shadow(request: web.Request) -> web.Response:
        copied.append(await request.read())
        await answers.wait()
        return web.Response(status=500)

    runners = []
    for handler in (stable, shadow):
        app = web.Application()
        app.router.add_post("/v2/models/e/infer", handler)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
    one, two = (
        Backend(name, f"http://127.0.0.1:{runner.addresses[0][1]}")
        for name, runner in zip(("v1", "v2"), runners, strict=True)
    )
    gateway = Gateway()
    front, port = await gateway.start("127.0.0.1", 0)
    gateway.routes["e"] = Route("v1", {one: 100}, two)
    seen: Counter[int] = Counter()
    try:
        async with aiohttp.ClientSession() as session:
            for number in range(requests):
                async with session.post(f"http://127.0.0.1:{port}/v2/models/e/infer", data=bytes([number])) as got:
                    assert (await got.read(), got.headers["x-flywheel-version"]) == (bytes([number]), "v1")
                    seen[got.status] += 1
            answers.set()
            await two.drained(10)
            async with session.get(f"http://127.0.0.1:{port}/metrics") as got:
                metrics = await got.text()
    finally:
        for runner in (front, *runners):
            await runner.cleanup()
    return seen, copied, metrics


def test_one_in_the_shadow_is_asked_the_same_and_harms_nobody() -> None:
    seen, copied, metrics = asyncio.run(shadowed(20))
    assert seen == {200: 20}
    assert sorted(copied) == [bytes([number]) for number in range(20)]
    assert 'requests_total{code="500",endpoint="e",version="v2"} 20.0' in metrics
    assert 'requests_total{code="200",endpoint="e",version="v1"} 20.0' in metrics


def test_one_in_the_shadow_that_does_not_keep_up_is_sent_no_more() -> None:
    seen, copied, _ = asyncio.run(shadowed(MAX_COPIES + 20))
    assert seen == {200: MAX_COPIES + 20}
    assert len(copied) == MAX_COPIES


@pytest.mark.parametrize("routes", [{}, {"e": Route()}])
def test_nothing_ready_is_said_clearly(routes: dict[str, Route]) -> None:
    async def run() -> tuple[int, str]:
        gateway = Gateway()
        gateway.routes = routes
        runner, port = await gateway.start("127.0.0.1", 0)
        try:
            address = f"http://127.0.0.1:{port}/v2/models/e/infer"
            async with aiohttp.ClientSession() as session, session.post(address, data=b"x") as got:
                return got.status, (await got.json())["error"]
        finally:
            await runner.cleanup()

    code, sentence = asyncio.run(run())
    assert (code, sentence) in [
        (404, "there is no endpoint 'e' here; known: none."),
        (503, "no version of e is ready: nothing is wanted there."),
    ]
