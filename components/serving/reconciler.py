"""From the wanted state to processes: one model server a version, restarted when it crashes, ended when it drained."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..runtime.adapters.local.serving import LocalServing
from ..runtime.errors import FlywheelError
from ..runtime.ports import EndpointState, Observed
from ..runtime.wiring import open_store
from .gateway import Backend, Gateway, Route
from .leases import Leases, take_back
from .replica import Replica

LOOK_S = 0.2
DRAIN_S = 15.0
Key = tuple[str, str]
"""A version to run: its name and the id of its release."""


@dataclass(frozen=True)
class Plan:
    """What follows from the wanted state and what runs: versions to start and to stop, and the weights of the ready."""

    start: frozenset[Key]
    stop: frozenset[Key]
    route: Mapping[Key, int]
    settled: bool


def plan(wanted: Mapping[Key, int], running: Mapping[Key, bool], before: Key | None) -> Plan:
    """Decide, without doing anything.

    Nothing that is not ready gets traffic. A former stable version that is wanted no more goes on with all of it until
    a version that is wanted is ready; any other unwanted version ends at once, so that a canary that was
    taken back never serves again.

    Args:
        wanted: Weight of each wanted version.
        running: Whether each version that was started is ready.
        before: The stable version when last everything wanted was ready.
    """
    weighted = {key: weight for key, weight in wanted.items() if weight > 0}
    ready = {key: weight for key, weight in weighted.items() if running.get(key)}
    settled = len(ready) == len(weighted)
    kept = {before} if before in running and before not in wanted and weighted and not settled else set()
    if not ready:
        ready = {key: 1 for key in kept if key and running[key]}
    return Plan(
        start=frozenset(wanted.keys() - running.keys()),
        stop=frozenset(running.keys() - wanted.keys() - kept),
        route=ready,
        settled=settled,
    )


def keys(state: EndpointState) -> dict[Key, int]:
    return {(name, served.release.id): served.weight for name, served in state.versions.items()}


class Endpoint:
    """Everything that runs for one endpoint."""

    def __init__(
        self,
        name: str,
        store: str,
        log_share: float,
        serving: LocalServing,
        gateway: Gateway,
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self.name, self._store, self._serving, self._gateway, self._say = name, store, serving, gateway, say
        self._log_share, self._changed = log_share, changed
        self._replicas: dict[Key, Replica] = {}
        self._backends: dict[Key, Backend] = {}
        self._before: Key | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._reported: object = None

    def look(self, state: EndpointState) -> None:
        """Bring processes, routes and report into line with the wanted state."""
        running = {key: replica.ready for key, replica in self._replicas.items()}
        wanted = keys(state)
        steps = plan(wanted, running, self._before)
        if steps.settled:
            self._before = (state.stable, state.versions[state.stable].release.id) if state.stable else None
        for key in sorted(steps.start):
            release = state.versions[key[0]].release
            self._replicas[key] = Replica(
                *(self.name, key[0], release.package_uri, self._store, self._log_share, self._say, self._changed)
            )
        for key, replica in self._replicas.items():
            if not replica.ready or self._backends.get(key, Backend("", "")).url != replica.url:
                self._backends.pop(key, None)
            if replica.ready and key not in self._backends:
                self._backends[key] = Backend(key[0], replica.url)
        shadow = next((self._backends.get(key) for key in wanted if key[0] == state.shadow), None)
        self._route(state, steps.route, shadow)
        for key in sorted(steps.stop):
            task = asyncio.create_task(self._end(self._replicas.pop(key), self._backends.pop(key, None)))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        self._report()

    def _route(self, state: EndpointState, weights: Mapping[Key, int], shadow: Backend | None) -> None:
        backends = {self._backends[key]: weight for key, weight in weights.items()}
        why_not = "; ".join(
            f"{name}: {replica.reason or 'starting'}"
            for (name, _), replica in self._replicas.items()
            if not replica.ready
        )
        route = Route(state.stable, backends, shadow, why_not or "nothing is wanted there")
        if self._gateway.routes.get(self.name) != route:
            self._gateway.routes[self.name] = route

    async def _end(self, replica: Replica, backend: Backend | None) -> None:
        if backend:
            await backend.drained(DRAIN_S)
        await replica.stop()

    def _report(self) -> None:
        versions = {
            name: Observed(ready=replica.ready, url=replica.url if replica.ready else "", reason=replica.reason)
            for (name, _), replica in self._replicas.items()
        }
        pids = {name: replica.pid for (name, _), replica in self._replicas.items() if replica.pid}
        if self._reported != (versions, pids):
            try:
                self._serving.report(self.name, versions, pids)
            except OSError as error:
                # A full disk hides what is served; it does not end it. The next look tries again.
                if self._reported is not None:
                    self._say(f"{self.name}: what is served cannot be reported: {error.strerror}")
                self._reported = None
            else:
                self._reported = (versions, pids)

    async def stop(self) -> None:
        await asyncio.gather(*(replica.stop() for replica in self._replicas.values()), *self._ending)


class Reconciler:
    """Looks at every endpoint's wanted state, and whenever a process changes."""

    def __init__(
        self, store: str, log_share: float, serving: LocalServing, gateway: Gateway, say: Callable[[str], None]
    ) -> None:
        self._store, self._serving, self._gateway, self._say = store, serving, gateway, say
        self._log_share = log_share
        self._endpoints: dict[str, Endpoint] = {}
        self._states: dict[str, EndpointState] = {}
        self._complaints: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._leases = Leases()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        while True:
            self._changed.clear()
            for name in self._serving.endpoints():
                self._look(name)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_S)

    def _look(self, name: str) -> None:
        try:
            state = self._serving.read(name)
            self._complaints.pop(name, None)
        except FlywheelError as error:
            # What is served goes on while a person mends the file.
            if self._complaints.get(name) != str(error):
                self._complaints[name] = str(error)
                self._say(str(error))
            if name not in self._states:
                return
            state = self._states[name]
        if self._leases.expired(state):
            state = self._take_back(state)
        split = (
            ", ".join(
                f"{version} {served.weight} %{' and copies' if served.shadow else ''}"
                for version, served in state.versions.items()
            )
            or "nothing"
        )
        wanted = f"{name}: wanted is {split}: {state.reason or 'no reason given'}"
        if self._told.get(name) != wanted:
            self._told[name] = wanted
            self._say(wanted)
        self._states[name] = state
        if name not in self._endpoints:
            self._endpoints[name] = Endpoint(
                *(name, self._store, self._log_share, self._serving, self._gateway, self._say, self._changed.set)
            )
        self._endpoints[name].look(state)

    def _take_back(self, state: EndpointState) -> EndpointState:
        try:
            return take_back(self._serving, open_store(self._store), state, time.time())
        except FlywheelError as error:
            self._say(f"{state.endpoint}: an expired lease could not be ended: {error}")
            return self._serving.read(state.endpoint)

    async def stop(self) -> None:
        await asyncio.gather(*(endpoint.stop() for endpoint in self._endpoints.values()))
