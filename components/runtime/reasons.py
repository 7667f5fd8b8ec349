"""Why a job failed, for a person: records in the store beside its log, of which a line may get lost on its way."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import FlywheelError, JobFailed, UserError
from .manifests import load
from .ports import Jobs, JobSpec, Store
from .records import Record
from .step import MARK, say


class Failure(Record):
    """An error: `exit_code` as in errors.py."""

    exit_code: int
    message: str
    next: str


def leave(store: Store, folder: str, attempt: str, error: FlywheelError) -> None:
    """Write down why one start of a job failed.

    Args:
        folder: Of the job, in the store.
        attempt: Names the start; a later one has a greater name.
    """
    failure = Failure(exit_code=error.exit_code, message=error.message, next=error.next)
    store.put(f"{folder}failures/{attempt}-{time.time_ns()}.json", failure.line().encode())


def reason(store: Store, folder: str, attempt: str = "") -> FlywheelError | None:
    """What was written down last, of one start or of all; none if nothing was."""
    keys = list(store.list(f"{folder}failures/{attempt}"))
    if not keys:
        return None
    failure = load(store, keys[-1], Failure)
    kind = UserError if failure.exit_code == UserError.exit_code else JobFailed
    return kind(failure.message, failure.next)


@contextmanager
def told(store: Store, folder: str, attempt: str, stage: str) -> Iterator[None]:
    """Surround a job: its error is written down, said, and its exit code."""
    try:
        yield
    except FlywheelError as error:
        leave(store, folder, attempt, error)
        say(f"{stage}: {error}")
        raise SystemExit(error.exit_code) from None


def have_done(store: Store, jobs: Jobs, job: JobSpec, folder: str) -> None:
    """Have a job done to its end; what it says to whoever watches is handed on.

    Raises:
        FlywheelError: What it wrote down itself.
        JobFailed: It ended badly without a word.
    """
    before = len(list(store.list(f"{folder}failures/")))
    jobs.submit(job)
    try:
        jobs.wait(job.name, _hand_on)
    except JobFailed:
        found = reason(store, folder)
        if found is None or len(list(store.list(f"{folder}failures/"))) == before:
            raise
        raise found from None


def _hand_on(line: str) -> None:
    """Of all that a job prints, what it says to whoever watches."""
    _, mark, said = line.partition(MARK)
    if mark:
        say(said)
