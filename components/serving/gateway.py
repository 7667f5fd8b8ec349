"""One address for all endpoints: each request goes to a version chosen at random by weight, and its answer says which.

A failure of the canary is the client's to see and the metrics' to count. Only when no connection to the stable version
could be made at all, so that nothing was sent, another ready version of the endpoint is asked, once.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..runtime.ports import ANSWERED_BY
from .metrics import BUCKETS, Rows, is_refusal

MAX_BODY = 32 << 20
TIMEOUT_S = 60.0
MAX_COPIES = 64
"""Copies of requests at once; beyond that none is made, so a slow canary in the shadow slows nobody."""
_NOT_FORWARDED = frozenset(
    ("host", "connection", "keep-alive", "transfer-encoding", "content-length", "expect", "upgrade", "te", "trailer")
)
_BACK = ("content-type", "inference-header-content-length")


@dataclass(eq=False)
class Backend:
    """One ready version: its name, its address, and how many of our requests it is at work on."""

    version: str
    url: str
    at_work: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> "Backend":
        self.at_work += 1
        self.idle.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self.at_work -= 1
        if not self.at_work:
            self.idle.set()

    async def drained(self, timeout_s: float) -> None:
        """Wait until no request of ours is at work there, but not longer than this."""
        if self.at_work:
            try:
                await asyncio.wait_for(self.idle.wait(), timeout_s)
            except TimeoutError:
                return


@dataclass(frozen=True)
class Route:
    """Where an endpoint's requests go: ready versions by weight (all > 0), the name of the stable one, and who is sent
    a copy."""

    stable: str | None = None
    backends: Mapping[Backend, int] = field(default_factory=dict)
    shadow: Backend | None = None
    why_not: str = "nothing is wanted there"

    def pick(self, roll: float, but: Backend | None = None) -> Backend | None:
        """The version for a request. `roll` lies in [0, 1); `but` is left out."""
        candidates = [(backend, weight) for backend, weight in self.backends.items() if backend is not but]
        point = roll * sum(weight for _, weight in candidates)
        for backend, weight in candidates:
            point -= weight
            if point < 0:
                return backend
        return candidates[-1][0] if candidates else None


class Gateway:
    """The proxy. `routes` is replaced entry by entry by the reconciler, in the same event loop."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self._metrics = CollectorRegistry()
        self._requests = Counter(
            "flywheel_gateway_requests", "Answers given", ["endpoint", "version", "code"], registry=self._metrics
        )
        self._failures = Counter(
            "flywheel_gateway_failures",
            "Failed answers, up to five in a row counted as one",
            ["endpoint", "version"],
            registry=self._metrics,
        )
        self._seconds = Histogram(
            "flywheel_gateway_request_seconds",
            "Time from a request to its answer, but for the client's own mistakes",
            ["endpoint", "version"],
            registry=self._metrics,
            buckets=BUCKETS,
        )
        self._rows = Rows()
        self._copies: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> tuple[web.AppRunner, int]:
        """Listen, and give the runner to clean up and the port.

        Raises:
            OSError: The port is taken.
        """
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),  # less than the model server's 65 s
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=5),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        app = web.Application(client_max_size=MAX_BODY)
        for path in ("/v2/models/{endpoint}", "/v2/models/{endpoint}/ready"):
            app.router.add_get(path, self._forward)
        app.router.add_post("/v2/models/{endpoint}/infer", self._forward)
        for path in ("/healthz", "/v2/health/ready"):
            app.router.add_get(path, self._health)
        app.router.add_get("/metrics", self._scrape)
        app.on_cleanup.append(self._close)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=10)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            await runner.cleanup()
            raise
        return runner, runner.addresses[0][1]

    async def _close(self, _: web.Application) -> None:
        for copy in self._copies:
            copy.cancel()
        await self._session.close()

    async def _health(self, _: web.Request) -> web.Response:
        ready = {name: sorted(b.version for b in route.backends) for name, route in self.routes.items()}
        return web.json_response({"ready": ready}, status=200 if all(ready.values()) else 503)

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _forward(self, request: web.Request) -> web.Response:
        started = time.perf_counter()
        endpoint = request.match_info["endpoint"]
        route = self.routes.get(endpoint)
        if route is None:
            return _error(
                404, f"there is no endpoint {endpoint[:100]!r} here; known: {', '.join(sorted(self.routes)) or 'none'}."
            )
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            self._count(request, "none", 413, started)
            return _error(413, f"the request is larger than {MAX_BODY} bytes.")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED}
        backend = route.pick(random.random())
        if backend is None:
            self._count(request, "none", 503, started)
            return _error(503, f"no version of {endpoint} is ready: {route.why_not}.", {"retry-after": "1"})
        try:
            answer = await self._ask(backend, request, headers, body)
        except aiohttp.ClientConnectorError:
            other = route.pick(random.random(), but=backend) if backend.version == route.stable else None
            if other is None:
                answer = _error(502, f"{backend.version} of {endpoint} cannot be reached.")
            else:
                self._count(request, backend.version, 502, started)
                backend = other
                try:
                    answer = await self._ask(backend, request, headers, body)
                except aiohttp.ClientConnectorError:
                    answer = _error(502, f"{backend.version} of {endpoint} cannot be reached.")
        answer.headers[ANSWERED_BY] = backend.version
        self._count(request, backend.version, answer.status, started)
        if route.shadow and len(self._copies) < MAX_COPIES:
            copy = asyncio.create_task(self._copy(route.shadow, request, headers, body))
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)
        return answer

    async def _copy(self, backend: Backend, request: web.Request, headers: dict[str, str], body: bytes) -> None:
        """Ask a version what another one has answered, and count how it does."""
        started = time.perf_counter()
        try:
            code = (await self._ask(backend, request, headers, body)).status
        except aiohttp.ClientConnectorError:
            code = 502
        self._count(request, backend.version, code, started)

    async def _ask(self, backend: Backend, request: web.Request, headers: dict[str, str], body: bytes) -> web.Response:
        with backend:
            try:
                async with self._session.request(
                    request.method, backend.url + request.path_qs, data=body, headers=headers, allow_redirects=False
                ) as answer:
                    content = await answer.read()
                    kept = {name: answer.headers[name] for name in _BACK if name in answer.headers}
                    return web.Response(body=content, status=answer.status, headers=kept)
            except aiohttp.ClientConnectorError:
                raise
            except TimeoutError:
                return _error(504, f"{backend.version} did not answer within {TIMEOUT_S:.0f} s.")
            except aiohttp.ClientError as error:
                return _error(502, f"{backend.version} broke off: {type(error).__name__}.")

    def _count(self, request: web.Request, version: str, code: int, started: float) -> None:
        if request.method != "POST":
            return
        who = request.match_info["endpoint"], version
        self._requests.labels(*who, str(code)).inc()
        if not is_refusal(code):
            self._failures.labels(*who).inc(self._rows.failures(who, code))
            self._seconds.labels(*who).observe(time.perf_counter() - started)


def _error(code: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": sentence}, status=code, headers=headers)
