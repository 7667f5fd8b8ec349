"""What a rollout writes down as it goes: whoever runs it again after a kill goes on from there.

Under `rollouts/<endpoint>/<pair>/<attempt>/`: `begun.json`, `replayed.json`, `looks/<number>.json`, `ended.json`. Each
is written once, so two processes at the same rollout notice each other.
"""

from typing import Literal

from ..runtime.artifacts import Check, Release, content_id
from ..runtime.manifests import load
from ..runtime.ports import Counts, Store
from ..runtime.records import Record, RecordT
from .evidence import Look, Replayed


class Begun(Record):
    """How things stood when it began: the stable's cumulative counts, from which comes what is slow."""

    at: float
    stable: Counts


class Ended(Record):
    """How it ended.

    Args:
        run: The run that ended it.
        verdict: How it came to be decided: take, adopt, canary, hand; or changed, if nothing was decided.
        diary: Prefix of the diary in the store.
    """

    run: str
    decision: Literal["promote", "hold", "rollback"]
    verdict: Literal["take", "adopt", "canary", "hand", "changed"]
    reason: str
    checks: tuple[Check, ...] = ()
    diary: str = ""


class Diary:
    """Of one attempt to replace one champion by one release: the first that has not ended, or that this run ended."""

    def __init__(self, store: Store, endpoint: str, release: Release, champion: Release, run: str) -> None:
        self._store = store
        pair = f"rollouts/{endpoint}/{content_id([release.id, champion.id])}"
        attempt = 1
        while (ended := self._read(f"{pair}/{attempt:04d}/ended.json", Ended)) and ended.run != run:
            attempt += 1
        self.prefix = f"{pair}/{attempt:04d}/"
        self.ended = ended

    @property
    def begun(self) -> Begun | None:
        return self._read(f"{self.prefix}begun.json", Begun)

    def begin(self, begun: Begun) -> Begun:
        """Note how things stand; what was noted before stands."""
        return self._once("begun.json", begun)

    @property
    def replayed(self) -> Replayed | None:
        return self._read(f"{self.prefix}replayed.json", Replayed)

    def replay(self, replayed: Replayed) -> Replayed:
        return self._once("replayed.json", replayed)

    def looks(self) -> list[Look]:
        """All looks so far, oldest first."""
        return [load(self._store, key, Look) for key in self._store.list(f"{self.prefix}looks/")]

    def look(self, number: int, look: Look) -> None:
        """Add a look.

        Raises:
            AlreadyExists: Another process added one of this number: it is at work on the same rollout.
        """
        self._store.put(f"{self.prefix}looks/{number:06d}.json", look.to_json())

    def end(self, ended: Ended) -> Ended:
        self.ended = self._once("ended.json", ended.but(diary=self.prefix))
        return self.ended

    def _once(self, name: str, record: RecordT) -> RecordT:
        found = self._read(self.prefix + name, type(record))
        if found is None:
            self._store.put(self.prefix + name, record.to_json())
        return found or record

    def _read(self, key: str, kind: type[RecordT]) -> RecordT | None:
        return load(self._store, key, kind) if self._store.exists(key) else None
