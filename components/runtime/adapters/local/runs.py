"""A folder of asked-for runs, which `flywheel watch` works off."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import Conflict, Corrupt, PlatformError, UserError
from ...ports import RunEnded, RunRequest
from ...records import Record, RecordT
from ..files import partial

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class LocalRuns:
    """`local:///folder`. What was asked for is `<name>.json`, what came of it `ended/<name>.json`, each written once.

    `flywheel watch` holds `watch.lock`, with its process id in it.
    """

    def __init__(self, uri: str) -> None:
        self.folder = Path(uri.removeprefix("local://"))

    def start(self, request: RunRequest) -> bool:
        return self._once(self._asked(request.name), request)

    def find(self, name: str) -> RunRequest | None:
        return _read(self._asked(name), RunRequest)

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
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name of a run.", "use letters, digits, dots and hyphens, 128 at most")
        return self.folder / f"{name}.json"

    def _ended(self, name: str) -> Path:
        return self.folder / "ended" / self._asked(name).name

    def _names(self, folder: Path) -> set[str]:
        return {path.stem for path in folder.glob("*.json") if NAME.fullmatch(path.stem)}

    def _load(self, names: set[str]) -> list[RunRequest]:
        found = [request for name in names if (request := self.find(name))]
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

    def list(self) -> list[RunRequest]:  # the last one: below it, `list` is no type
        return self._load(self._names(self.folder))


def _read(path: Path, kind: type[RecordT]) -> RecordT | None:
    try:
        return kind.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except Corrupt as error:
        raise Corrupt(error.message, f"mend {path} by hand, or move it away") from error
    except OSError as error:
        raise PlatformError(f"{path} cannot be read: {error.strerror}.", f"ls -l {path}") from error
