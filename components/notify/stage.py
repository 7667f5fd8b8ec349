"""How a run went, told to people: what failed, why and the next command; or what the last step decided.

KFP hands on no error text, so the steps' own records tell. Whatever goes wrong on the way to people is a sentence in
the record of this step, never the end of the run.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..runtime.artifacts import MonitorReport, content_id
from ..runtime.errors import AlreadyExists, FlywheelError
from ..runtime.manifests import find
from ..runtime.ports import Notice, Notifier, Store
from ..runtime.step import StepRecord, run_records, step

NAME = "notify"
WARNINGS = {"held", "rolled back", "fail", "undecided", "alert", "retrain"}
"""Decisions that want a person, as the sentences of steps begin."""


SUCCEEDED = ("SUCCEEDED", "COMPLETE", "CACHED")
"""What KFP calls a run that ended well: by kfp.local, and in a cluster by ML Metadata's words."""
BRANCHED = "RUNNING"
"""What a cluster's KFP calls one in which a condition was not met, and one whose step was killed: records tell."""


@dataclass(frozen=True)
class About:
    """The run that a notice is about.

    Args:
        steps: The pipeline's, in order, as far as they are known.
    """

    pipeline: str
    endpoint: str
    run: str
    steps: tuple[str, ...] = ()

    def notice(self, level: Literal["info", "warning"], title: str, text: str, next: str, once: str) -> Notice:
        """A notice about this run. Another one with the same title and the same `once` is not told again."""
        key = f"{self.pipeline}/{self.endpoint}/{content_id([title, once])}"
        return Notice(key=key, level=level, title=f"{self.pipeline} of {self.endpoint}: {title}", text=text, next=next)


def compose(
    about: About, records: Iterable[StepRecord], state: str, monitored: MonitorReport | None = None
) -> Notice | None:
    """What a person should know of a run; nothing if a monitor saw nothing and did nothing.

    What a schedule says again is told once a day. A monitor says it with other numbers each time: there the decision
    counts, the request for labels, and the runs that it started.

    Args:
        records: How each step went, in order of their start.
        state: As KFP says.
        monitored: The report, if the last step was a monitor.
    """
    last = {record.step: record for record in records if record.step != NAME}
    record = max(last.values(), key=lambda record: record.started, default=None)
    whole = record is not None and (record.ends or last.keys() >= set(about.steps))
    sound = all(record.outcome != "failed" for record in last.values())
    if state not in SUCCEEDED and not (state == BRANCHED and whole and sound):
        return _failure(about, last, state)
    if record is None:
        return about.notice("warning", "no step left a record", "Nothing is known of it.", "", about.run)
    text, next = _divided(record.sentence)
    decision = text.partition(":")[0].lower()
    title = f"{record.step} says {decision}" if decision in WARNINGS | {"promoted"} else f"{record.step} is done"
    once = text
    if monitored:
        if monitored.decision == "quiet" and not monitored.started and not next:
            return None
        once = " ".join([monitored.decision, monitored.request, *monitored.started])
    level: Literal["info", "warning"] = "warning" if decision in WARNINGS else "info"
    return about.notice(level, title, text, next, f"{once} {_day(record)}")


def _failure(about: About, last: Mapping[str, StepRecord], state: str) -> Notice:
    failed = next((record for record in last.values() if record.outcome == "failed"), None)
    if failed:
        text, remedy = _divided(failed.sentence)
        remedy = remedy or f"read the log of {failed.step} in run {about.run}"
        return about.notice("warning", f"{failed.step} failed", text, remedy, f"{text} {_day(failed)}")
    dead = next((name for name in about.steps if name not in last), "a step")
    how = "it was cancelled" if state.startswith("CANCEL") else "killed, out of memory, or never started"
    before = list(last.values())[-1:]
    said = "".join(f" Before it, {record.step}: {record.sentence}" for record in before)
    return about.notice(
        "warning",
        f"{dead} failed",
        f"{dead} ended without a word: {how}.{said}",
        f"read the log of {dead} in run {about.run}, then run it again: what was done is reused",
        about.run,
    )


def _divided(sentence: str) -> tuple[str, str]:
    """What a step said, and the next command at its end."""
    text, mark, remedy = sentence.rpartition(" Next: ")
    return (text, remedy) if mark else (sentence, "")


def _day(record: StepRecord) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(record.started))


def deliver(store: Store, notifiers: Mapping[str, Notifier], notice: Notice) -> str:
    """Send a notice on every way that it has not taken yet, and say in a sentence what came of it.

    A way is noted as taken after it was: a notice is told twice rather than never.

    Args:
        notifiers: By their URIs.
    """
    said = []
    for uri, notifier in notifiers.items():
        key = f"notices/{content_id([uri, notice.key])}.json"
        try:
            with contextlib.suppress(FlywheelError):  # the store is away: then so much the more it has to be told
                if store.exists(key):
                    said.append(f"{uri} knows already.")
                    continue
            notifier.send(notice)
            said.append(f"{uri} was told.")
            with contextlib.suppress(AlreadyExists):
                store.put(key, notice.to_json())
        except FlywheelError as error:
            said.append(f"{uri}: {error}")
    return " ".join([f"{notice.title}.", *said])


def run(state: str, pipeline: str, steps: str, endpoint: str, platform: str, run_id: str) -> None:
    """Tell how the run of this exit task went; see `component.notify`."""
    with step(NAME, platform, run_id) as here:
        about = About(pipeline, endpoint, run_id, tuple(steps.split()))
        notice: Notice | None
        try:
            records = run_records(here.store, run_id)
            report = next((record.artifact for record in reversed(records) if record.step == "monitor"), "")
            monitored = find(here.store, report, MonitorReport) if report else None
            notice = compose(about, records, state, monitored)
        except FlywheelError as error:
            notice = about.notice(
                "warning", f"{state.lower()}, no more is known", error.message, error.next, f"{run_id} {state}"
            )
        if notice is None:
            here.sentence = "Nothing that a person has to know."
        else:
            here.sentence = deliver(here.store, here.world.notifiers, notice)
