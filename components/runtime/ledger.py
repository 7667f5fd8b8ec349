"""Who served when, and why: one entry for each generation of an endpoint that came to serve, written once."""

import contextlib

from .artifacts import Release
from .errors import AlreadyExists
from .manifests import load
from .ports import EndpointState, Store
from .records import Record


class Entry(Record):
    """What an endpoint's wanted state was from `at` (seconds since the epoch) on. It derives from that state alone."""

    endpoint: str
    generation: int
    at: float
    by: str
    reason: str
    stable: str | None
    weights: dict[str, int]
    release: Release | None


def append(store: Store, state: EndpointState) -> Entry:
    """Enter a state. The first entry of a generation stands, so a step that was killed enters it again."""
    entry = Entry(
        endpoint=state.endpoint,
        generation=state.generation,
        at=max(state.since, state.changed),
        by=state.by,
        reason=state.reason,
        stable=state.stable,
        weights={name: served.weight for name, served in state.versions.items()},
        release=state.champion,
    )
    with contextlib.suppress(AlreadyExists):
        store.put(_key(state.endpoint, state.generation), entry.to_json())
    return entry


def close(store: Store, state: EndpointState, by: str, reason: str, now: float) -> Entry:
    """Enter that an endpoint is gone.

    Args:
        state: The last that was known of it.
        now: Seconds since the epoch.
    """
    gone = state.but(generation=state.generation + 1, stable=None, versions={}, lease=None, by=by, reason=reason)
    return append(store, gone.but(since=now, changed=now))


def catch_up(store: Store, state: EndpointState) -> None:
    """Enter a state unless its last change was: its generation may have grown since, as a lease is renewed."""
    keys = list(store.list(f"ledger/{state.endpoint}/"))
    if not keys or load(store, keys[-1], Entry).at != max(state.since, state.changed):
        append(store, state)


def entered(store: Store, state: EndpointState) -> bool:
    """Whether this generation came to serve, as far as the ledger knows."""
    return store.exists(_key(state.endpoint, state.generation))


def history(store: Store, endpoint: str) -> list[Entry]:
    """All entries of an endpoint, oldest first."""
    return [load(store, key, Entry) for key in store.list(f"ledger/{endpoint}/")]


def _key(endpoint: str, generation: int) -> str:
    return f"ledger/{endpoint}/{generation:08d}.json"  # padded: keys are listed in the order of their text
