"""A folder of asked-for runs, which `flywheel watch` works off."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ...errors import Conflict, Corrupt, PlatformError
from ...ports import RunRequest, RunState, Task
from ...records import Record, RecordT
from ..files import partial
from ..names import NAME, checked

CANCELLED = 130


class RunEnded(Record):
    """What came of a run, as `flywheel watch` enters it."""

    name: str
    run: str
    decision: str
    reason: str
    exit_code: int

    @property
    def state(self) -> Literal["succeeded", "failed", "cancelled"]:
        if self.exit_code == CANCELLED:
            return "cancelled"
        return "failed" if self.exit_code in (1, 2, 3) else "succeeded"


class LocalRuns:
    """`local:///folder`. What was asked for is `<name>.json`, what came of it `ended/<name>.json`, each written once.

    `flywheel watch` holds `watch.lock`, with its process id in it.
    """

    def __init__(self, uri: str) -> None:
        self.folder = Path(uri.removeprefix("local://"))

    def start(self, request: RunRequest) -> bool:
        return self._once(self._asked(request.name), request)

    def find(self, name: str) -> RunState | None:
        request, ended = _read(self._asked(name), RunRequest), self.ended(name)
        if request is None:
            return None
        if ended is None:
            return RunState(request=request, state="waiting", seconds=max(time.time() - request.at, 0.0))
        return RunState(request=request, state=ended.state, run=ended.run, reason=ended.reason)

    def tasks(self, state: RunState) -> "list[Task]":
        return []  # `flywheel watch` keeps the logs

    def cancel(self, state: RunState) -> None:
        """End a run that waits.

        Raises:
            Conflict: Somebody watches, and may be at work on it.
        """
        with self.hold():
            reason = "it was cancelled before it began"
            self.end(RunEnded(name=state.request.name, run="", decision="", reason=reason, exit_code=CANCELLED))

    def ended(self, name: str) -> RunEnded | None:
        return _read(self._ended(name), RunEnded)

    def waiting(self) -> list[RunRequest]:
        """All that have not ended, oldest first."""
        return self._load(self._names(self.folder) - self._names(self.folder / "ended"))

    def end(self, ended: RunEnded) -> None:
        """Enter what came of a run; the first word stands."""
        self._once(self._ended(ended.name), ended)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the one who works this folder off.

        Raises:
            Conflict: Another one is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Opened for appending: what another one wrote must not be lost before its lock is ours.
        with (self.folder / "watch.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                other = lock.read() or "unknown"
                raise Conflict(
                    f"flywheel watch is at work for {self.folder}: process {other}.", f"end it first: kill {other}"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            try:
                yield
            finally:
                lock.truncate(0)

    def _asked(self, name: str) -> Path:
        return self.folder / f"{checked(name)}.json"

    def _ended(self, name: str) -> Path:
        return self.folder / "ended" / self._asked(name).name

    def _names(self, folder: Path) -> set[str]:
        return {path.stem for path in folder.glob("*.json") if NAME.fullmatch(path.stem)}

    def _load(self, names: set[str]) -> list[RunRequest]:
        found = [request for name in names if (request := _read(self._asked(name), RunRequest))]
        return sorted(found, key=lambda request: (request.at, request.name))

    def _once(self, target: Path, record: Record) -> bool:
        """Write a file that appears whole, unless there is one."""
        try:
            with partial(target) as new:
                with new.open("wb") as file:
                    file.write(record.to_json())
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(new, target)
                except FileExistsError:
                    return False
        except OSError as error:
            raise PlatformError(f"{target} could not be written: {error.strerror}.", f"df -h {self.folder}") from error
        return True

    def list(self, limit: int) -> list[RunState]:  # the last one: below it, `list` is no type
        newest = self._load(self._names(self.folder))[::-1][:limit]
        return [found for request in newest if (found := self.find(request.name))]


def _read(path: Path, kind: type[RecordT]) -> RecordT | None:
    try:
        return kind.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except Corrupt as error:
        raise Corrupt(error.message, f"mend {path} by hand, or move it away") from error
    except OSError as error:
        raise PlatformError(f"{path} cannot be read: {error.strerror}.", f"ls -l {path}") from error
