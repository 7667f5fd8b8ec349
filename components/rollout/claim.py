"""A rollout's right to an endpoint: a lease in its wanted state, renewed while the rollout works, lost without it.

Everything is compare-and-swap. Who finds its lease gone stops: the endpoint is somebody else's, a person's perhaps.
"""

import contextlib
import time
from collections.abc import Callable

from ..runtime import ledger
from ..runtime.artifacts import Release
from ..runtime.errors import Conflict
from ..runtime.ports import EndpointState, Lease, Served, Serving, Store

LEASE_S = 15.0
NAP_S = 0.1


class Lost(Exception):
    """The endpoint is no longer this rollout's."""

    def __init__(self, state: EndpointState, problem: str = "") -> None:
        super().__init__(problem)
        self.state, self.problem = state, problem


class Claim:
    """Of one run, to have a release beside the champion that it was compared with.

    Args:
        clock: Seconds since the epoch.
        pause: Sleeps.
    """

    def __init__(
        self,
        store: Store,
        serving: Serving,
        endpoint: str,
        release: Release,
        champion: Release,
        run: str,
        clock: Callable[[], float],
        pause: Callable[[float], None],
    ) -> None:
        self.store, self.serving, self.endpoint, self.run = store, serving, endpoint, run
        self.release, self.champion, self.clock, self.pause = release, champion, clock, pause
        self.version, self.stable = f"v{release.version}", f"v{champion.version}"
        self._renewed = -LEASE_S

    def enter(self, tell: Callable[[str], None]) -> None:
        """Have the release run beside the champion, without traffic.

        Raises:
            Lost: The champion is another one, or another rollout is at work.
        """
        while True:
            state = self.serving.read(self.endpoint)
            if state.champion is None or state.champion.id != self.champion.id or state.edited:
                raise Lost(state)
            if state.lease and state.lease.owner != self.run:
                tell(f"waits for the lease of run {state.lease.owner}")
                self._outlive(state.lease)
                continue
            both = {
                self.stable: state.versions[self.stable].alone(),
                self.version: Served(release=self.release, weight=0),
            }
            if self._write(state.but(versions=both), f"{self.version} is tried beside {self.stable}."):
                return

    def renew(self) -> None:
        """See that the endpoint is still ours, and renew the lease when a third of it is over; to be called often.

        Raises:
            Lost: It is not.
        """
        state = self.serving.read(self.endpoint)
        if not self._holds(state):
            raise Lost(state)
        if time.monotonic() - self._renewed > LEASE_S / 3:
            self._change(lambda found: found, "")

    def share(self, weight: int, shadow: bool = False) -> None:
        """Give the release a share of the traffic, in percent; in the shadow it is sent a copy of each request.

        Raises:
            UserError: The gateway copies no requests.
        """

        def divide(state: EndpointState) -> EndpointState:
            stable, mine = state.versions[self.stable], state.versions[self.version]
            mine = mine.but(weight=weight, shadow=shadow)
            return state.but(versions={self.stable: stable.but(weight=100 - weight), self.version: mine})

        what = "a copy of each request" if shadow else f"{weight} % of the traffic"
        self._change(divide, f"{self.version} has {what}.")

    def promote(self, reason: str) -> None:
        """Make the release the champion, alone."""

        def alone(state: EndpointState) -> EndpointState:
            mine = state.versions[self.version].alone()
            return state.but(stable=self.version, versions={self.version: mine}, lease=None, since=self.clock())

        self._change(alone, reason)

    def withdraw(self, reason: str) -> None:
        """Leave the champion alone; no error if it is so already, and entered into the ledger all the same."""

        def without(state: EndpointState) -> EndpointState:
            return state.but(versions={self.stable: state.versions[self.stable].alone()}, lease=None)

        state = self.serving.read(self.endpoint)
        if self.version in state.versions or state.lease:
            self._change(without, reason)
        else:  # by a process before this one, which was killed, or by the reconciler
            ledger.append(self.store, state)

    def _change(self, change: Callable[[EndpointState], EndpointState], reason: str) -> None:
        while True:
            state = self.serving.read(self.endpoint)
            if not self._holds(state):
                raise Lost(state)
            if self._write(change(state.but(lease=self._lease())), reason):
                return

    def _write(self, state: EndpointState, reason: str) -> bool:
        """Write unless somebody was quicker; a change with a reason is entered into the ledger."""
        wanted = state.but(changed=self.clock(), by=self.run, reason=reason) if reason else state
        if state.lease is None and len(state.versions) > 1:
            wanted = wanted.but(lease=self._lease())
        try:
            written = self.serving.write(wanted)
        except Conflict:
            return False
        self._renewed = time.monotonic()
        if reason:
            ledger.append(self.store, written)
        return True

    def _holds(self, state: EndpointState) -> bool:
        mine, champion = state.versions.get(self.version), state.champion
        owner = state.lease.owner if state.lease else ""
        there = mine is not None and mine.release.id == self.release.id
        unchanged = champion is not None and champion.id == self.champion.id and not state.edited
        return owner == self.run and there and unchanged

    def _lease(self) -> Lease:
        return Lease(owner=self.run, seconds=LEASE_S, renewed=self.clock())

    def _outlive(self, lease: Lease) -> None:
        """Wait until another rollout's lease has run out.

        Raises:
            Lost: It is renewed: its owner is at work.
        """
        until = time.monotonic() + lease.seconds + 2 * NAP_S
        while True:
            state = self.serving.read(self.endpoint)
            if state.lease is None:
                return
            if state.lease != lease:
                raise Lost(state, f"run {lease.owner} is at work at endpoint {self.endpoint}.")
            if time.monotonic() > until:  # nobody reconciles
                with contextlib.suppress(Conflict):
                    self.serving.write(state.but(lease=None))
                return
            self.pause(NAP_S)
