"""What a stage has a job do, and what became of it: records in the store.

Why a job failed is written down beside its log, of which a line may get lost on its way.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar, TypeVar

from .artifacts import content_id
from .config import Platform
from .errors import FlywheelError, JobFailed, UserError
from .images import TRAIN
from .lines import heard, say
from .manifests import load
from .ports import Jobs, JobSpec, Store
from .records import Record
from .wiring import open_store


class Order(Record):
    """All that a job needs to know; each kind adds what it needs.

    Args:
        key: Hash of all that decides on the result. The job keeps what it has under it: whoever has it done again, in
            another run too, goes on from there.
    """

    STAGE: ClassVar[str]
    MODULE: ClassVar[str]
    """The program that does it, by a call of `work`."""
    PLACE: ClassVar[str]
    """Prefix, in the store, of all jobs of this kind."""

    key: str
    platform: Platform

    @property
    def name(self) -> str:
        """The job's name: a DNS label."""
        return f"{self.STAGE}-{self.key}"

    @property
    def folder(self) -> str:
        """Prefix, in the store, of what this job keeps."""
        return f"{self.PLACE}{self.key}/"

    @property
    def result_key(self) -> str:
        """Where the manifest of the result is written, last of all."""
        return f"{self.folder}result.json"


OrderT = TypeVar("OrderT", bound=Order)


class Failure(Record):
    """An error: `exit_code` as in errors.py."""

    exit_code: int
    message: str
    next: str


def have_done(order: Order, store: Store, jobs: Jobs, workers: int, cpus: int, gpus: int = 0) -> None:
    """Have an order carried out, unless its result is there; what the job says to whoever watches is handed on.

    Args:
        workers: Ray workers, each with `cpus` CPUs and `gpus` GPUs.

    Raises:
        FlywheelError: What the job wrote down itself.
        JobFailed: It ended badly without a word.
    """
    if store.exists(order.result_key):
        return
    text = order.to_json()
    job = JobSpec(
        name=order.name,
        module=order.MODULE,
        spec_uri=store.put(f"{order.folder}specs/{content_id(text.decode())}.json", text),
        spec_hash=order.key,
        image=order.platform.images.get("train", TRAIN),
        workers=workers,
        cpus=cpus,
        gpus=gpus,
    )
    before = len(list(store.list(f"{order.folder}failures/")))
    jobs.submit(job)
    try:
        jobs.wait(job.name, partial(_hand_on, order.STAGE))
    except JobFailed:
        found = reason(store, order.folder)
        if found is None or len(list(store.list(f"{order.folder}failures/"))) == before:
            raise
        raise found from None


def work(kind: type[OrderT], uri: str, carry_out: Callable[[OrderT, Store, str], None]) -> None:
    """Be the job of an order; its error is written down, said, and its exit code.

    Args:
        uri: Of the order, in a store.
        carry_out: Is given the order, its store, and a name for this start of the job: a later one has a greater name.
    """
    store = open_store(uri.rpartition(f"/{kind.PLACE}")[0])
    order, attempt = kind.from_json(store.get(uri), uri), f"{time.time_ns():020d}"
    os.chdir(tempfile.gettempdir())  # MLflow and Ray leave things where they stand
    try:
        carry_out(order, store, attempt)
    except FlywheelError as error:
        leave(store, order.folder, attempt, error)
        say(f"{kind.STAGE}: {error}")
        raise SystemExit(error.exit_code) from None


def leave(store: Store, folder: str, attempt: str, error: FlywheelError) -> None:
    """Write down why one start of a job failed.

    Args:
        folder: Of the job, in the store.
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


def _hand_on(stage: str, line: str) -> None:
    """Of all that a job prints, and that is said about it, what is for whoever watches."""
    if said := heard(line):
        say(said if said.startswith(f"{stage}: ") else f"{stage}: {said}")
