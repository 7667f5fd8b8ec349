"""Decisions of a person: they stand at once, and stop a rollout that is at work."""

from ..runtime import ledger
from ..runtime.errors import Conflict, UserError
from ..runtime.ports import EndpointState, Served, Serving, Store


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
            reason = f"{state.stable or 'Nothing'} was rolled back to {name} by hand."
            wanted = state.but(
                stable=name, versions={name: Served(release=former, weight=100)}, lease=None, since=now
            ).but(changed=now, by=by, reason=reason)
        if written := _write(store, serving, wanted):
            return written


def _write(store: Store, serving: Serving, wanted: EndpointState) -> EndpointState | None:
    try:
        written = serving.write(wanted)
    except Conflict:
        return None
    ledger.append(store, written)
    return written
