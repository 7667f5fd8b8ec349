"""The contract of the Telemetry port, over this machine's real gateway and versions that answer as they are told."""

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.adapters.local.telemetry import LocalTelemetry
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.ports import BURST, Counts
from kfp_flywheel.components.runtime.wiring import connect
from kfp_flywheel.components.serving.gateway import Backend, Gateway, Route
from kfp_flywheel.components.serving.metrics import BUCKETS, Rows, is_refusal

from tests.servers import free_port


@given(codes=st.lists(st.sampled_from([200, 400, 404, 500, 502, 504]), max_size=60))
def test_failures_in_a_row_count_as_one_for_every_five(codes: list[int]) -> None:
    rows = Rows()
    counted = sum(rows.failures("v1", code) for code in codes if not is_refusal(code))
    rows_of = "".join("f" if code >= 500 else "." for code in codes if not is_refusal(code)).split(".")
    assert counted == sum(-(-len(row) // BURST) for row in rows_of)


def test_limits_of_times_are_close_together() -> None:
    assert BUCKETS[0] == 0.002
    assert 9 < BUCKETS[-1] < 11
    assert all(1.24 < higher / lower < 1.26 for lower, higher in pairwise(BUCKETS))


@asynccontextmanager
async def scripted(codes: list[int]) -> Any:
    """A version that answers with these codes, one after another; gives its address."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=codes.pop(0))

    app = web.Application()
    app.router.add_post("/v2/models/{name}/infer", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def gateway_before(serving: LocalServing, routes: dict[str, Route]) -> Any:
    """The gateway of a folder; gives a function that asks an endpoint."""
    gateway = Gateway()
    gateway.routes = routes
    runner, port = await gateway.start("127.0.0.1", 0)
    with serving.hold() as publish:
        publish(f"http://127.0.0.1:{port}")
        async with aiohttp.ClientSession() as session:

            async def ask(endpoint: str, body: bytes = b"x") -> int:
                async with session.post(f"http://127.0.0.1:{port}/v2/models/{endpoint}/infer", data=body) as got:
                    return got.status

            try:
                yield ask
            finally:
                await runner.cleanup()


def test_answers_are_counted_where_requests_are_assigned(tmp_path: Path) -> None:
    serving = LocalServing(f"local://{tmp_path}")
    telemetry = LocalTelemetry(f"local://{tmp_path}")

    async def run() -> None:
        codes = [200, 500, 500, 400, 500, 200, 503]
        async with scripted(codes) as url:
            routes = {
                "e": Route("v1", {Backend("v1", url): 1}),
                "gone": Route("v2", {Backend("v2", f"http://127.0.0.1:{free_port()}"): 1}),
                "empty": Route(),
            }
            async with gateway_before(serving, routes) as ask:
                assert await asyncio.to_thread(telemetry.counts, "e") == {}
                for code in list(codes):
                    assert await ask("e") == code
                for _ in range(BURST + 1):
                    assert await ask("gone") == 502
                assert await ask("empty") == 503
                found = {name: await asyncio.to_thread(telemetry.counts, name) for name in (*routes, "unknown")}
        assert (found["e"]["v1"].requests, found["e"]["v1"].failures) == (6, 2)
        assert (found["gone"]["v2"].requests, found["gone"]["v2"].failures) == (BURST + 1, 2)
        assert found["empty"] == found["unknown"] == {}, "no version was asked"
        within = found["e"]["v1"].within
        assert sorted(map(float, within)) == [*BUCKETS, float("inf")]
        assert within["+Inf"] == 6
        counts = [within[edge] for edge in sorted(within, key=float)]
        assert counts == sorted(counts)
        async with scripted([200]) as url, gateway_before(serving, {"e": Route("v1", {Backend("v1", url): 1})}) as ask:
            await ask("e")
            again = await asyncio.to_thread(telemetry.counts, "e")
        assert (again["v1"].requests, again["v1"].failures) == (1, 0), "a gateway counts from nothing"

    asyncio.run(run())


def test_nobody_to_ask_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    serving, telemetry = LocalServing(f"local://{tmp_path}"), LocalTelemetry(f"local://{tmp_path}")
    with pytest.raises(PlatformError, match="nobody serves endpoint e") as raised:
        telemetry.counts("e")
    assert raised.value.next == "flywheel serve"
    with serving.hold() as publish:
        publish(f"http://127.0.0.1:{free_port()}")
        with pytest.raises(PlatformError, match="/metrics does not answer"):
            telemetry.counts("e")


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ("<html>a page</html>", 200, "answers 200 without the metrics of a gateway"),
        ("", 200, "answers 200 without the metrics of a gateway"),
        ("python_info 1.0\n", 200, "answers 200 without the metrics of a gateway"),
        ("gone", 404, "answers 404 without"),
    ],
)
def test_an_answer_that_is_no_gateways_is_an_error(answer: str, status: int, said: str, tmp_path: Path) -> None:
    async def run() -> dict[str, Counts]:
        async def other(_: web.Request) -> web.Response:
            return web.Response(text=answer, status=status)

        app = web.Application()
        app.router.add_get("/metrics", other)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with LocalServing(f"local://{tmp_path}").hold() as publish:
            publish(f"http://127.0.0.1:{runner.addresses[0][1]}")
            try:
                return await asyncio.to_thread(LocalTelemetry(f"local://{tmp_path}").counts, "e")
            finally:
                await runner.cleanup()

    with pytest.raises(PlatformError, match=said):
        asyncio.run(run())


def test_a_platform_without_telemetry_knows_nothing_of_a_canary(platform: Platform) -> None:
    assert isinstance(connect(platform).telemetry, LocalTelemetry)
    with pytest.raises(UserError, match="telemetry is missing"):
        _ = connect(platform.but(telemetry="")).telemetry
