"""What stages need of the world. Adapters are named after technologies; `wiring` alone chooses them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

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


class Listed(Record):
    """One object as it was listed: `mark` is another one when its content is (SHA-256, ETag, generation)."""

    key: str
    size: int
    mark: str


class Source(Protocol):
    """Objects that others write. What is read of them is what was listed, or an error."""

    def listed(self, prefix: str) -> Iterator[Listed]:
        """Objects whose keys begin with a prefix, sorted by key."""
        ...

    def part(self, listed: Listed, start: int, stop: int) -> bytes:
        """Bytes of an object, from `start` to before `stop`.

        Raises:
            DataError: It is not what was listed any more.
            PlatformError: It cannot be read.
        """
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


RECONCILER = "flywheel serve"
"""Who takes a canary back when its lease has expired: an endpoint's `by`."""
PIN = "flywheel-version"
"""Header of a request that asks for a version by name. It was not assigned at random, so it is not compared."""
ANSWERED_BY = "x-flywheel-version"
"""Header of an answer: the version that gave it."""


class Served(Record):
    """One version in an endpoint's wanted state.

    Args:
        weight: Its share of the traffic in percent.
        shadow: Whether it is sent a copy of each request, beside the version that answers; nobody gets its answers.
    """

    release: Release
    weight: int
    shadow: bool = False

    def alone(self) -> "Served":
        """The same, with all of the traffic."""
        return self.but(weight=100, shadow=False)


class Lease(Record):
    """The right of one rollout to have a canary at an endpoint.

    It has expired when an observer has seen it unchanged for `seconds` by the observer's own monotonic clock: no two
    clocks are compared (as in Kubernetes' leader election).

    Args:
        owner: The rollout's run.
        seconds: How long it holds without being renewed.
        renewed: When, in seconds since the epoch: for people, and so that each renewal differs from the last.
    """

    owner: str
    seconds: float
    renewed: float


class EndpointState(Record):
    """The wanted state of an endpoint: the single truth of who is champion.

    Args:
        generation: Grows with every change; 0 is an endpoint that nobody has written yet.
        stable: Name of the champion among `versions`, or none.
        versions: By version name (`v` + registry version): what is to run, and its share of traffic in percent.
        since: Seconds since the epoch of the last change of `stable`.
        changed: Seconds since the epoch of the last change of versions or weights; a lease is renewed without one.
        by: The run, or the person, that made the last change.
        reason: Why it is as it is, in one sentence.
        edited: Who changed its traffic past us, and when; a rollout leaves such an endpoint to people. Never written.
    """

    endpoint: str
    generation: int = 0
    stable: str | None = None
    versions: dict[str, Served] = msgspec.field(default_factory=dict)
    lease: Lease | None = None
    since: float = 0.0
    changed: float = 0.0
    by: str = ""
    reason: str = ""
    edited: str = ""

    @property
    def champion(self) -> Release | None:
        return self.versions[self.stable].release if self.stable else None

    @property
    def shadow(self) -> str | None:
        """Name of the version that is sent copies, if there is one."""
        return next((version for version, served in self.versions.items() if served.shadow), None)


class Observed(Record):
    """What a version truly does: whether it answers, where it is asked alone, and if it does not answer why."""

    ready: bool
    url: str = ""
    reason: str = ""


class Serving(Protocol):
    """Endpoints: a stable address, versions behind it, traffic divided over them."""

    def read(self, endpoint: str) -> EndpointState: ...

    def write(self, state: EndpointState) -> EndpointState:
        """Replace the wanted state if nobody changed it since it was read; gives it with the next generation.

        Raises:
            Conflict: Somebody changed it first.
            UserError: A version is to be sent copies, and the gateway cannot do that.
        """
        ...

    def observe(self, endpoint: str) -> dict[str, Observed]:
        """What runs, by version name."""
        ...

    def url(self, endpoint: str) -> str:
        """The address that never changes, without a trailing slash; `…/v2/models/{endpoint}/infer` answers."""
        ...


BURST = 5
"""Failures in a row that count as one at most."""


class Counts(Record):
    """What one version was asked and how it answered, since its counters began.

    Args:
        requests: Answers given, failures included; a client's own mistakes (4xx) are left out.
        failures: Answers with 5xx, or none. Up to `BURST` in a row count as one: what fails together has one cause.
        within: Answers given within so many seconds (the key, as text), cumulative as in a Prometheus histogram.
    """

    requests: int = 0
    failures: int = 0
    within: dict[str, int] = msgspec.field(default_factory=dict)


class Telemetry(Protocol):
    """How the versions of an endpoint are doing, counted where requests are assigned to them."""

    def counts(self, endpoint: str) -> dict[str, Counts]:
        """Cumulative counts by version name. A counter that began anew has smaller values than before.

        Raises:
            PlatformError: They cannot be had.
        """
        ...


class Notice(Record):
    """Something that a person should know.

    Args:
        key: Of two notices with one key, only the first is sent.
        level: info, or a warning for what wants a person.
        title: One line.
        text: Some sentences, plain text.
        next: The command that helps; may be empty.
    """

    key: str
    level: Literal["info", "warning"]
    title: str
    text: str
    next: str = ""


class Notifier(Protocol):
    """A way to people."""

    def send(self, notice: Notice) -> None:
        """Hand a notice on.

        Raises:
            PlatformError: It could not be delivered.
        """
        ...


class RunRequest(Record):
    """A run of a pipeline, as it was asked for.

    Args:
        name: Deterministic: what is asked for twice is started once.
        pipeline: As `flywheel compile` names it.
        parameters: The pipeline's, but `platform`.
        reason: Why, in one sentence.
        at: Seconds since the epoch.
    """

    name: str
    pipeline: str
    parameters: dict[str, str | int | float | bool]
    reason: str
    at: float


class RunState(Record):
    """What has become of a run that was asked for.

    Args:
        state: On one machine, a run that `flywheel watch` is at work on counts as waiting.
        run: The id that its steps' records stand under; empty as long as there is none.
        reason: Why it ended so, as far as the backend knows.
        seconds: From its start to its end, or until now.
        url: Where a person sees it; may be empty.
    """

    request: RunRequest
    state: Literal["waiting", "running", "succeeded", "failed", "cancelled"]
    run: str = ""
    reason: str = ""
    seconds: float = 0.0
    url: str = ""

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "running")


class Task(Record):
    """A step of a run, as the backend sees it.

    Args:
        seconds: From its start to its end, or until now.
        printed: All that it has printed so far, as far as the backend tells.
        waits_for: What keeps it from beginning, if that is something unusual.
    """

    name: str
    state: Literal["waiting", "running", "succeeded", "failed", "skipped", "cancelled"]
    seconds: float = 0.0
    printed: str = ""
    waits_for: str = ""


class Runs(Protocol):
    """Runs of pipelines, worked off by others."""

    def start(self, request: RunRequest) -> bool:
        """Have a run started, without waiting for it; whether it is a new one."""
        ...

    def find(self, name: str) -> RunState | None:
        """The run of this name, or of this id, if it was ever asked for."""
        ...

    def tasks(self, state: RunState) -> "list[Task]":
        """A run's steps that have begun, in order; none where the backend does not tell."""
        ...

    def cancel(self, state: RunState) -> None:
        """End a run. One that is over is no error."""
        ...

    def list(self, limit: int) -> "list[RunState]":
        """The newest runs, the newest first."""
        ...


class Schedule(Record):
    """Runs of a pipeline at times that cron names.

    Args:
        name: There is one of a name.
        parameters: The pipeline's, but `platform`.
        cron: Five fields: minute, hour, day, month, weekday; in UTC.
        paused: Whether no run is started.
        says: The cron in words; not needed to make one.
    """

    name: str
    pipeline: str
    parameters: dict[str, str | int | float | bool]
    cron: str
    paused: bool = False
    says: str = ""


class Schedules(Protocol):
    """Who starts runs at their times, one run of a schedule at a time."""

    def put(self, schedule: Schedule, say: Callable[[str], None]) -> str:
        """Have a schedule as it is wanted: `created`, `replaced` or `unchanged`.

        Args:
            say: Is told what is waited for: the last run of a schedule that is replaced.

        Raises:
            UserError: The cron is none.
        """
        ...

    def pause(self, name: str) -> None:
        """Start no run until it is resumed."""
        ...

    def resume(self, name: str) -> None: ...

    def delete(self, name: str, say: Callable[[str], None]) -> None:
        """Delete a schedule; a run of it that is at work is waited for."""
        ...

    def list(self) -> "list[Schedule]": ...
