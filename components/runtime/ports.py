"""What stages need of the world. Adapters are named after technologies; `wiring` alone chooses them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from .artifacts import Release
from .records import Record


class Store(Protocol):
    """Objects that are written once. Keys are relative paths with `/`; a URI is the store's root plus the key."""

    @property
    def root(self) -> str: ...

    def put(self, key: str, source: bytes | Path) -> str:
        """Write an object whole or not at all, and give its URI. The same content again is no error.

        Raises:
            AlreadyExists: The key holds other content.
            PlatformError: It could not be written (disk full, no permission).
        """
        ...

    def get(self, uri: str) -> bytes:
        """Read an object.

        Raises:
            PlatformError: There is none, or it cannot be read.
        """
        ...

    def fetch(self, uri: str, to: Path) -> None:
        """Bring an object to a local path, whole or not at all. The file may be shared: never write into it."""
        ...

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that begin with a prefix, sorted."""
        ...


@dataclass(frozen=True)
class JobSpec:
    """A program to run elsewhere: `python -m MODULE SPEC_URI` in an image.

    Args:
        name: Deterministic: run and task. Submitting it again adopts what is there.
        module: Dotted name of the program.
        spec_uri: Where it reads what to do; its `spec_hash` guards against adopting another job.
        workers: Ray workers, each with `cpus` CPUs and `gpus` GPUs.
        deadline_s: Seconds after which the job is ended.
    """

    name: str
    module: str
    spec_uri: str
    spec_hash: str
    image: str
    workers: int = 1
    cpus: int = 1
    gpus: int = 0
    deadline_s: float = 86_400
    env: dict[str, str] = field(default_factory=dict)


class Jobs(Protocol):
    """Programs that outlive a function call."""

    def submit(self, spec: JobSpec) -> None:
        """Start a job, or adopt the one of this name.

        Raises:
            Conflict: A job of this name with another spec hash is at work.
        """
        ...

    def wait(self, name: str, on_line: Callable[[str], None]) -> None:
        """Follow a job to its end; each line that it prints is handed to `on_line`.

        Raises:
            JobFailed: With the reason and the last lines.
        """
        ...

    def cancel(self, name: str) -> None:
        """End a job and everything that it started. Unknown names are no error."""
        ...


class Served(Record):
    """One version in an endpoint's wanted state."""

    release: Release
    weight: int


class Lease(Record):
    """The right of one rollout to change an endpoint, until `expires` (seconds since the epoch)."""

    owner: str
    expires: float


class EndpointState(Record):
    """The wanted state of an endpoint: the single truth of who is champion.

    Args:
        generation: Grows by one with every change; 0 is an endpoint that nobody has written yet.
        stable: Name of the champion among `versions`, or none.
        versions: By version name (`v` + registry version): what is to run, and its share of traffic in percent.
        since: Seconds since the epoch of the last change of `stable`.
        by: The run, or the person, that made the last change.
        reason: Why it is as it is, in one sentence.
    """

    endpoint: str
    generation: int = 0
    stable: str | None = None
    versions: dict[str, Served] = msgspec.field(default_factory=dict)
    lease: Lease | None = None
    since: float = 0.0
    by: str = ""
    reason: str = ""

    @property
    def champion(self) -> Release | None:
        return self.versions[self.stable].release if self.stable else None


class Observed(Record):
    """What a version truly does: whether it answers, where, and if not why."""

    ready: bool
    url: str = ""
    reason: str = ""


class Serving(Protocol):
    """Endpoints: a stable address, versions behind it, traffic divided over them."""

    def read(self, endpoint: str) -> EndpointState: ...

    def write(self, state: EndpointState) -> EndpointState:
        """Replace the wanted state if its generation is still `state.generation`; gives it with the next one.

        Raises:
            Conflict: Somebody changed it first.
        """
        ...

    def observe(self, endpoint: str) -> dict[str, Observed]:
        """What runs, by version name."""
        ...

    def url(self, endpoint: str) -> str:
        """The address that never changes, without a trailing slash; `…/v2/models/{endpoint}/infer` answers."""
        ...
