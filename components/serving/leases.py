"""A canary whose rollout is gone is taken back: its lease was not renewed for as long as it holds, by our own clock."""

import time
from collections.abc import Callable

from ..runtime import ledger
from ..runtime.ports import RECONCILER, EndpointState, Lease, Serving, Store


class Leases:
    """Since when each endpoint's lease was seen unchanged.

    Args:
        clock: Seconds of a clock that never jumps.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[Lease, float]] = {}

    def expired(self, state: EndpointState) -> bool:
        """Whether nobody renewed it in time. One that is seen for the first time has all of its time left."""
        if state.lease is None:
            self._seen.pop(state.endpoint, None)
            return False
        lease, since = self._seen.get(state.endpoint, (None, 0.0))
        if lease != state.lease:
            self._seen[state.endpoint] = (state.lease, self._clock())
            return False
        return self._clock() - since > state.lease.seconds


def take_back(serving: Serving, store: Store, state: EndpointState, now: float) -> EndpointState:
    """Leave the stable version alone at an endpoint.

    Args:
        now: Seconds since the epoch.

    Raises:
        Conflict: Somebody changed it: the lease was renewed, or a person decided.
    """
    assert state.lease is not None
    gone = ", ".join(name for name in state.versions if name != state.stable)
    stable = {name: served.alone() for name, served in state.versions.items() if name == state.stable}
    reason = f"{gone or 'nothing'} was taken back: run {state.lease.owner} did not renew its lease of "
    reason += f"{state.lease.seconds:g} s."
    written = serving.write(state.but(versions=stable, lease=None, changed=now, by=RECONCILER, reason=reason))
    ledger.append(store, written)
    return written
