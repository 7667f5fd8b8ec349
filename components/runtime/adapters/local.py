"""The backends of one machine: a folder as store, child processes as jobs, a file as an endpoint's wanted state."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import AlreadyExists, Conflict, Corrupt, JobFailed, PlatformError
from ..ports import EndpointState, JobSpec, Observed


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A temporary name beside the target, gone whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class LocalStore:
    """`file:///folder`. An object appears under its name by a hard link, which is atomic and never replaces one."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._folder = Path(self.root.removeprefix("file://"))

    def _path(self, key: str) -> Path:
        path = self._folder / key
        if not key or ".." in path.parts or key.startswith("/"):
            raise PlatformError(f"{key!r} is not a key of the store {self.root}.")
        return path

    def _at(self, uri: str) -> Path:
        if not uri.startswith(f"{self.root}/"):
            raise PlatformError(
                f"{uri} does not lie in the store {self.root}.", "use the store that the artifact was written to"
            )
        return self._path(uri[len(self.root) + 1 :])

    def put(self, key: str, source: bytes | Path) -> str:
        target, uri = self._path(key), f"{self.root}/{key}"
        try:
            with _partial(target) as partial:
                if isinstance(source, Path):
                    shutil.copyfile(source, partial)
                else:
                    partial.write_bytes(source)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.chmod(0o444)
                try:
                    os.link(partial, target)
                except FileExistsError:
                    if _digest(target) != _digest(partial):
                        raise AlreadyExists(f"{uri} holds other content, and objects are written once.") from None
        except OSError as error:
            raise PlatformError(
                f"{uri} could not be written: {error.strerror}.",
                f"df -h {self._folder}; then run the same command again",
            ) from error
        return uri

    def get(self, uri: str) -> bytes:
        try:
            return self._at(uri).read_bytes()
        except OSError as error:
            raise PlatformError(f"{uri} cannot be read: {error.strerror}.") from error

    def fetch(self, uri: str, to: Path) -> None:
        try:
            with _partial(to) as partial:
                partial.unlink()
                try:
                    os.link(self._at(uri), partial)
                except OSError:  # another file system
                    shutil.copyfile(self._at(uri), partial)
                partial.replace(to)
        except OSError as error:
            raise PlatformError(f"{uri} could not be brought to {to}: {error.strerror}.") from error

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        folder = self._folder / prefix.rpartition("/")[0]
        paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".partial-"))
        keys = (path.relative_to(self._folder).as_posix() for path in paths)
        yield from sorted(key for key in keys if key.startswith(prefix))


GRACE_S = 10.0


class LocalJobs:
    """`local://`. A job is a child process whose stdin is a pipe that we hold: when we are gone, however, it ends too.

    So there is nothing to adopt: a job is run again and continues from its own checkpoints.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[str, subprocess.Popen[str]]] = {}

    def submit(self, spec: JobSpec) -> None:
        if spec.name in self._running:
            if self._running[spec.name][0] != spec.spec_hash:
                raise Conflict(f"job {spec.name} is at work with another specification.")
            return
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kfp_flywheel.components.runtime.leash",
                str(spec.deadline_s),
                spec.module,
                spec.spec_uri,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=os.environ | spec.env,
        )
        self._running[spec.name] = (spec.spec_hash, process)

    def wait(self, name: str, on_line: Callable[[str], None]) -> None:
        process = self._running[name][1]
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=20)
        try:
            with process.stdout as lines:
                for line in lines:
                    last.append(line.rstrip())
                    on_line(line.rstrip())
            code = process.wait()
        finally:
            self.cancel(name)
        if code:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise JobFailed(f"job {name} ended with {how}; its last lines:\n" + "\n".join(last))

    def cancel(self, name: str) -> None:
        _, process = self._running.pop(name, ("", None))
        if process is None:
            return
        process.terminate()  # the leash hands it on; what the job holds outside this machine is given back
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the leash ends everything that is left
            process.wait()


class LocalServing:
    """`local:///folder`. The wanted state of an endpoint is `<endpoint>/wanted.json`.

    `flywheel serve` holds `serve.lock`, with its process id and address in it, and writes `<endpoint>/seen.json`.
    """

    def __init__(self, uri: str) -> None:
        self.folder = Path(uri.removeprefix("local://"))

    def endpoints(self) -> list[str]:
        """Names of all endpoints that were ever written."""
        return sorted(path.parent.name for path in self.folder.glob("*/wanted.json"))

    def read(self, endpoint: str) -> EndpointState:
        path = self.folder / endpoint / "wanted.json"
        try:
            return EndpointState.from_json(path.read_bytes(), str(path))
        except FileNotFoundError:
            return EndpointState(endpoint=endpoint)
        except Corrupt as error:
            raise Corrupt(
                error.message, f"mend {path} by hand, or move it away for an endpoint without a champion"
            ) from error

    def write(self, state: EndpointState) -> EndpointState:
        target = self.folder / state.endpoint / "wanted.json"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with (target.parent / "wanted.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = self.read(state.endpoint).generation
                if found != state.generation:
                    raise Conflict(
                        f"endpoint {state.endpoint} is at generation {found}, not {state.generation}: it was changed.",
                        "flywheel status shows who serves now",
                    )
                written = state.but(generation=found + 1)
                _replace(target, written.to_json().decode())
        except OSError as error:
            raise PlatformError(f"{target} could not be written: {error.strerror}.", f"df -h {self.folder}") from error
        return written

    def observe(self, endpoint: str) -> dict[str, Observed]:
        """What runs, by version name; nothing when no `flywheel serve` is at work for this folder."""
        server = self.server()
        if server is None:
            return {}
        try:
            seen = json.loads((self.folder / endpoint / "seen.json").read_bytes())
        except FileNotFoundError:
            return {}
        if seen["server"] != server["pid"]:
            return {}  # written by one that is gone
        return {name: msgspec.convert(value, Observed) for name, value in seen["versions"].items()}

    def url(self, endpoint: str) -> str:
        """The gateway's address, one for all endpoints; empty when no `flywheel serve` is at work."""
        server = self.server()
        return str(server["url"]) if server else ""

    def server(self) -> dict[str, Any] | None:
        """Process id (`pid`) and address (`url`) of the living `flywheel serve`, if there is one."""
        try:
            with (self.folder / "serve.lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    content = lock.read()
                    return dict(json.loads(content)) if content else None
        except (FileNotFoundError, NotADirectoryError):
            pass  # nobody ever served here
        return None

    @contextlib.contextmanager
    def hold(self) -> Iterator[Callable[[str], None]]:
        """Be the one `flywheel serve` of this folder; the function that is given publishes the gateway's address.

        Raises:
            Conflict: Another one is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Opened for appending: what another one wrote must not be lost before its lock is ours.
        with (self.folder / "serve.lock").open("a") as lock:
            # A reader holds the lock for some microseconds to see whether anybody does.
            deadline = time.monotonic() + 1.0
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        other = self.server() or {"pid": "unknown", "url": "an unknown address"}
                        raise Conflict(
                            f"flywheel serve is at work for {self.folder}: process {other['pid']}, {other['url']}.",
                            f"use it, or end it first: kill {other['pid']}",
                        ) from None
                    time.sleep(0.02)
            lock.truncate(0)

            def publish(url: str) -> None:
                lock.write(json.dumps({"pid": os.getpid(), "url": url}))
                lock.flush()

            try:
                yield publish
            finally:
                lock.truncate(0)

    def report(self, endpoint: str, versions: Mapping[str, Observed], pids: Mapping[str, int]) -> None:
        """Write what `flywheel serve` sees of one endpoint, in one piece."""
        seen = {
            "server": os.getpid(),
            "versions": {name: observed.plain() for name, observed in versions.items()},
            "pids": dict(pids),
        }
        _replace(self.folder / endpoint / "seen.json", json.dumps(seen, indent=1))


def _replace(target: Path, text: str) -> None:
    with _partial(target) as partial:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
