"""Decisions of a person: they stand at once, and stop a rollout that is at work."""

import time

from ..runtime import ledger
from ..runtime.artifacts import Release
from ..runtime.errors import Conflict, PlatformError, UserError
from ..runtime.ports import EndpointState, Lease, Served, Serving, Store
from ..serving.client import answered_by

AWAKE_S = 120.0
"""Seconds that a former champion may need to answer again."""


def promote(store: Store, serving: Serving, endpoint: str, by: str, now: float) -> EndpointState:
    """Make the canary of an endpoint its champion.

    Args:
        by: Who decides.
        now: Seconds since the epoch.

    Raises:
        UserError: There is no canary.
    """
    while True:
        state = serving.read(endpoint)
        canaries = [name for name in state.versions if name != state.stable]
        if not canaries:
            raise UserError(
                f"endpoint {endpoint} has no canary: {state.stable or 'nothing'} serves alone.",
                "flywheel rollout --version N tries a release that is registered",
            )
        alone = {canaries[0]: state.versions[canaries[0]].alone()}
        reason = f"{canaries[0]} was promoted by hand."
        wanted = state.but(stable=canaries[0], versions=alone, lease=None, since=now, changed=now, by=by, reason=reason)
        if written := _write(store, serving, wanted):
            return written


def rollback(store: Store, serving: Serving, endpoint: str, by: str, now: float) -> EndpointState:
    """Take the canary of an endpoint away; where there is none, make the champion before champion again.

    Raises:
        UserError: There is neither.
        PlatformError: The champion before does not answer; the one that serves goes on.
    """
    while True:
        state = serving.read(endpoint)
        canaries = [name for name in state.versions if name != state.stable]
        if canaries:
            stable = {name: served.alone() for name, served in state.versions.items() if name == state.stable}
            reason = f"{', '.join(canaries)} was taken back by hand."
            wanted = state.but(versions=stable, lease=None, changed=now, by=by, reason=reason)
        else:
            champion = state.champion
            before = [
                entry.release
                for entry in ledger.history(store, endpoint)
                if entry.release and (champion is None or entry.release.id != champion.id)
            ]
            if not before:
                raise UserError(
                    f"endpoint {endpoint} has no canary, and no champion before {state.stable or 'the first one'}.",
                    "flywheel history shows who served",
                )
            former = before[-1]
            name = f"v{former.version}"
            beside = _beside(store, serving, state, former, by, now)
            if beside is None:
                continue
            reason = f"{state.stable or 'Nothing'} was rolled back to {name} by hand."
            wanted = beside.but(
                stable=name, versions={name: Served(release=former, weight=100)}, lease=None, since=now
            ).but(changed=now, by=by, reason=reason)
        if written := _write(store, serving, wanted):
            return written


def _beside(
    store: Store, serving: Serving, state: EndpointState, former: Release, by: str, now: float
) -> EndpointState | None:
    """Have a former champion answer beside the one that serves, so that no request is lost; None if somebody else
    changed the endpoint.

    Raises:
        PlatformError: It does not answer.
    """
    version, stable = f"v{former.version}", state.stable or ""
    seen = serving.observe(state.endpoint).get(stable)
    if seen is None or not seen.ready:
        return state  # nobody is answered as it is
    lease = Lease(owner=by, seconds=AWAKE_S, renewed=now)
    both = {stable: state.versions[stable].alone(), version: Served(release=former, weight=0)}
    reason = f"{version} is started, to be rolled back to."
    written = _write(store, serving, state.but(versions=both, lease=lease, changed=now, by=by, reason=reason))
    if written is None:
        return None
    until = time.monotonic() + AWAKE_S
    while True:
        beside = serving.observe(state.endpoint).get(version)
        if beside and beside.ready and answered_by(beside.url, state.endpoint) == version:
            return written
        if time.monotonic() > until:
            reason = (beside.reason if beside else "") or "starting"
            told = f"{version} does not answer within {AWAKE_S:g} s: {reason}"
            _write(
                store, serving, written.but(versions=state.versions, lease=None, reason=f"{told}; {stable} goes on.")
            )
            raise PlatformError(f"{told}; {stable} goes on.", "mend the reason, then run the same command again")
        time.sleep(0.1)


def _write(store: Store, serving: Serving, wanted: EndpointState) -> EndpointState | None:
    try:
        written = serving.write(wanted)
    except Conflict:
        return None
    ledger.append(store, written)
    return written
