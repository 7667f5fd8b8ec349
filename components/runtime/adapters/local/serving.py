"""A file as an endpoint's wanted state, and what `flywheel serve` says of it."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...errors import Conflict, Corrupt, PlatformError
from ...ports import EndpointState, Observed
from ..files import replace


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
                replace(target, written.to_json())
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
        replace(self.folder / endpoint / "seen.json", json.dumps(seen, indent=1).encode())
