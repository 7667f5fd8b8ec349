"""`flywheel serve` on a cluster: puts right what a killed rollout leaves, and tells the ledger and the registry.

Gateway and model servers are the cluster's. With this away nothing breaks but the lease: a canary whose rollout was
killed stays. Several may run; one of them acts.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import urllib3
from kubernetes import client
from prometheus_client import Counter, Gauge, start_http_server

from ..runtime import ledger
from ..runtime.adapters.kserve.build import ENDPOINT
from ..runtime.adapters.kserve.knative import KnativeServing
from ..runtime.adapters.kserve.reconciler import METRICS_PORT, NAME
from ..runtime.adapters.kserve.serving import KServe
from ..runtime.adapters.leader import Leadership
from ..runtime.config import Platform
from ..runtime.errors import FlywheelError, PlatformError
from ..runtime.ports import EndpointState, Store
from ..runtime.wiring import connect
from .leases import Leases, take_back

LOOK_S = 0.5
SETTLE_S = 5.0
"""Seconds for which something must stay wrong until it is put right: a rollout at work may be just about to."""
TICK_S = 30
RETELL_S = 60.0
ALIASES = "kfp_flywheel.components.register.aliases"
AWAY = (FlywheelError, client.ApiException, urllib3.exceptions.HTTPError)

ENDPOINTS = Gauge("flywheel_reconciler_endpoints", "Endpoints that are kept")
LEADS = Gauge("flywheel_reconciler_leads", "Whether this process is the one that acts")
TAKEN_BACK = Counter("flywheel_reconciler_taken_back", "Canaries whose lease expired")
PUT_RIGHT = Counter("flywheel_reconciler_put_right", "Endpoints where something else ran than was wanted")
FAILURES = Counter("flywheel_reconciler_failures", "What could not be done, and is tried again")
LOOKED = Gauge("flywheel_reconciler_looked_seconds", "When all endpoints were looked at last, since the epoch")

Kept = KServe | KnativeServing


class Keeper:
    """What is known of all endpoints of a namespace, and what was done about it.

    Args:
        say: Receives a line for each thing that happens.
        clock: Seconds of a clock that never jumps.
    """

    def __init__(
        self,
        serving: Kept,
        store: Store,
        registry: "Registry",
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._serving, self._store, self._registry, self._say, self._clock = serving, store, registry, say, clock
        self._leases = Leases(clock)
        self._read: dict[str, tuple[str, EndpointState]] = {}
        self._since: dict[str, tuple[object, float]] = {}
        self._entered: dict[str, float] = {}
        self._told: dict[str, str] = {}

    def look(self, routes: Mapping[str, Mapping[str, Any]]) -> None:
        """End leases that expired.

        Args:
            routes: What holds the wanted states, HTTPRoutes or Leases, by endpoint, as they are now.
        """
        for state in self._states(routes):
            if state.edited or not self._leases.expired(state):
                continue
            with self._trying(state.endpoint):
                reason = take_back(self._serving, self._store, state, time.time()).reason
                TAKEN_BACK.inc()
                self._say(f"{state.endpoint}: {reason}")
        LOOKED.set(time.time())

    def settle(self, routes: Mapping[str, Mapping[str, Any]]) -> None:
        """Put right what runs, the ledger and the registry, where a process was killed before it could."""
        with self._trying("all"):
            states, champions = self._states(routes), dict[str, str]()
            untidy = self._serving.untidy(states, routes)
            for state in states:
                with self._trying(state.endpoint):
                    wrong = untidy[state.endpoint]
                    if self._lasts(f"{state.endpoint}/runs", wrong):
                        self._say(f"{state.endpoint}: {wrong}")
                        self._serving.keep(routes[state.endpoint])
                        PUT_RIGHT.inc()
                    new = self._entered.get(state.endpoint) != state.changed
                    if new and self._lasts(f"{state.endpoint}/ledger", state.changed) and self._serves(state):
                        ledger.catch_up(self._store, state)
                        self._entered[state.endpoint] = state.changed
                    if state.champion:
                        champions[state.champion.model] = state.champion.version
            self._forget(routes)
            self._registry.tell(champions)

    def _states(self, routes: Mapping[str, Mapping[str, Any]]) -> list[EndpointState]:
        """The wanted states; each text is read once."""
        states = []
        for name, found in routes.items():
            version = found["metadata"]["resourceVersion"]
            if self._read.get(name, ("",))[0] != version:
                with self._trying(name):
                    self._read[name] = version, self._serving.stated(found)
            if self._read.get(name, ("",))[0] == version:
                states.append(self._read[name][1])
        ENDPOINTS.set(len(states))
        return states

    def _serves(self, state: EndpointState) -> bool:
        seen = self._serving.observe(state.endpoint)
        return all(name in seen and seen[name].ready for name, served in state.versions.items() if served.weight)

    def _lasts(self, what: str, value: object) -> bool:
        """Whether something has been so for long enough; if it goes on, then again after as long."""
        before, since = self._since.get(what, (None, 0.0))
        lasts = bool(value) and before == value and self._clock() - since >= SETTLE_S
        if lasts or before != value:
            self._since[what] = value, self._clock()
        return lasts

    def _forget(self, routes: Mapping[str, Any]) -> None:
        """Enter into the ledger that an endpoint is gone: who deletes its route deletes it."""
        for name in self._read.keys() - routes.keys():
            _, state = self._read.pop(name)
            reason = f"its {self._serving.home_kind} was deleted."
            ledger.close(self._store, state, "kubectl", reason, time.time())
            self._say(f"{name}: {reason}")

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        """Whatever fails is said once, counted, and tried again at the next look."""
        try:
            yield
        except AWAY as error:
            FAILURES.inc()
            text = str(error).partition("\n")[0]
            if self._told.get(what) != text:
                self._told[what] = text
                self._say(f"{what}: {text}")
        else:
            self._told.pop(what, None)


class Registry:
    """Tells MLflow who is champion: by a process of its own, which ends, as MLflow needs more memory than all of us.

    Nobody waits for it: to take a canary back is more urgent.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._told: Mapping[str, str] = {}
        self._telling: tuple[Mapping[str, str], subprocess.Popen[str]] | None = None
        self._failed = float("-inf")

    def tell(self, champions: Mapping[str, str]) -> None:
        """Have the champion's version of each model told, if that is new; to be called again and again.

        Raises:
            PlatformError: It could not be told the last time.
        """
        if self._telling:
            told, process = self._telling
            if process.poll() is None:
                return
            self._telling = None
            _, errors = process.communicate()
            if process.returncode:
                self._failed = time.monotonic()
                last = (errors.strip() or f"exit code {process.returncode}").splitlines()[-1]
                raise PlatformError(f"the registry was not told who is champion: {last}")
            self._told = told
        if champions != self._told and time.monotonic() - self._failed > RETELL_S:
            command = [sys.executable, "-m", ALIASES, self._platform.line(), json.dumps(champions)]
            self._telling = champions, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


class Routes:
    """What holds the wanted states, followed in a thread of its own."""

    def __init__(self, serving: Kept, say: Callable[[str], None]) -> None:
        self._serving, self._say = serving, say
        self._found: dict[str, dict[str, Any]] | None = None
        threading.Thread(target=self._follow, daemon=True).start()

    def now(self) -> dict[str, dict[str, Any]] | None:
        """By name; None as long as nothing is known."""
        return self._found

    def _follow(self) -> None:
        while True:
            try:
                for found in self._serving.objects.follow_all(self._serving.home, ENDPOINT, TICK_S):
                    self._found = found
            except AWAY as error:
                self._found = None
                self._say(str(error).partition("\n")[0])
                time.sleep(SETTLE_S)


def keep(platform: Platform, say: Callable[[str], None], port: int = METRICS_PORT, host: str = "127.0.0.1") -> int:
    """Keep all endpoints of a namespace until SIGTERM or Ctrl-C.

    Args:
        platform: `serving` must be `kserve://`.
        port: Of /metrics; 0 for none.

    Returns:
        The exit code.
    """
    world = connect(platform)
    serving = world.serving
    assert isinstance(serving, Kept), "the caller's own check"
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    if isinstance(serving, KServe):
        serving.patience_s = 0.0  # one endpoint's gateway must not keep the others waiting: `settle` comes again
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if port:
        start_http_server(port, host)
    identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"
    leadership = Leadership(serving.objects, NAME, identity)
    routes, leads, settled, trouble = Routes(serving, say), False, 0.0, ""
    keeper = Keeper(serving, world.store, Registry(platform), say)
    say(f"keeps the endpoints of {platform.serving} as {identity}")
    while not ended.wait(LOOK_S):
        if leadership.holds() != leads:
            leads = not leads
            LEADS.set(leads)
            say("acts now" if leads else "stands by: another one acts")
            if leads:  # what was seen while another one acted has no age
                keeper = Keeper(serving, world.store, Registry(platform), say)
        if leadership.trouble not in ("", trouble):
            say(leadership.trouble)
        trouble = leadership.trouble
        found = routes.now()
        if not leads or found is None:
            continue
        keeper.look(found)
        if time.monotonic() - settled > SETTLE_S / 2:
            keeper.settle(found)
            settled = time.monotonic()
    leadership.give_back()
    say("ended")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="keeper", description=__doc__)
    parser.add_argument("--platform", default=os.environ.get("FLYWHEEL_PLATFORM", ""), help="the platform, as JSON")
    parser.add_argument("--host", default=os.environ.get("FLYWHEEL_HOST", "127.0.0.1"), help="address of /metrics")
    parser.add_argument("--port", type=int, default=METRICS_PORT, help="port of /metrics; 0 for none")
    given = parser.parse_args()
    try:
        code = keep(
            Platform.parse(given.platform), lambda line: print(f"keeper | {line}", flush=True), given.port, given.host
        )
    except FlywheelError as error:
        print(f"keeper | {error}", flush=True)
        raise SystemExit(error.exit_code) from None
    raise SystemExit(code)


if __name__ == "__main__":
    main()
