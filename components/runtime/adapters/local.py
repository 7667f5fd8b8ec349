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
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import AlreadyExists, Conflict, JobFailed, PlatformError
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
                f"{uri} could not be written: {error.strerror}.", f"df -h {self._folder}; then run the same command again"
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
                os.replace(partial, to)
        except OSError as error:
            raise PlatformError(f"{uri} could not be brought to {to}: {error.strerror}.") from error

    def exists(self, key: str) -> bool:
        return self._path(key).exists()

    def list(self, prefix: str) -> Iterator[str]:
        folder = (self._folder / prefix).parent if not prefix.endswith("/") else self._folder / prefix
        paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".partial-"))
        keys = (path.relative_to(self._folder).as_posix() for path in paths)
        yield from sorted(key for key in keys if key.startswith(prefix))


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
            [sys.executable, "-m", "kfp_flywheel.components.runtime.leash", str(spec.deadline_s), spec.module, spec.spec_uri],
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
            for line in process.stdout:
                last.append(line.rstrip())
                on_line(line.rstrip())
            code = process.wait()
        except BaseException:
            self.cancel(name)
            raise
        del self._running[name]
        if code:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise JobFailed(f"job {name} ended with {how}; its last lines:\n" + "\n".join(last))

    def cancel(self, name: str) -> None:
        if name not in self._running:
            return
        process = self._running.pop(name)[1]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class LocalServing:
    """`local:///folder`. The wanted state is `<endpoint>/wanted.json`; `flywheel serve` writes what it sees beside it."""

    def __init__(self, uri: str) -> None:
        self.folder = Path(uri.removeprefix("local://"))

    def read(self, endpoint: str) -> EndpointState:
        try:
            return EndpointState.model_validate_json((self.folder / endpoint / "wanted.json").read_bytes())
        except FileNotFoundError:
            return EndpointState(endpoint=endpoint)

    def write(self, state: EndpointState) -> EndpointState:
        target = self.folder / state.endpoint / "wanted.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / "wanted.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self.read(state.endpoint).generation
            if found != state.generation:
                raise Conflict(
                    f"endpoint {state.endpoint} is at generation {found}, not {state.generation}: somebody changed it.",
                    "flywheel status shows who serves now",
                )
            written = state.model_copy(update={"generation": found + 1})
            with _partial(target) as partial:
                partial.write_text(written.model_dump_json(indent=1))
                os.replace(partial, target)
        return written

    def observe(self, endpoint: str) -> dict[str, Observed]:
        seen = self._seen(endpoint)
        return {name: Observed.model_validate(value) for name, value in seen.get("versions", {}).items()}

    def url(self, endpoint: str) -> str:
        return str(self._seen(endpoint).get("url", ""))

    def _seen(self, endpoint: str) -> dict[str, dict[str, object]]:
        """What a living `flywheel serve` wrote; nothing if it holds its lock no more."""
        folder = self.folder / endpoint
        try:
            with (folder / "serve.lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return {}  # nobody holds it
        except FileNotFoundError:
            return {}
        except BlockingIOError:
            pass
        try:
            found: dict[str, dict[str, object]] = json.loads((folder / "seen.json").read_bytes())
        except FileNotFoundError:
            return {}
        return found
