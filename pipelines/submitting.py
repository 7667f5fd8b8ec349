"""`flywheel submit` and `flywheel runs`: runs that others work off, started once, followed, told of."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..components.runtime.compiling import begun
from ..components.runtime.config import Platform
from ..components.runtime.errors import FlywheelError, PlatformError, UserError
from ..components.runtime.folder import SCHEMES
from ..components.runtime.lines import heard
from ..components.runtime.ports import RunRequest, Runs, RunState, Task
from ..components.runtime.step import StepRecord, run_records
from ..components.runtime.wiring import connect
from . import running

LOOK_S = 1.0
AWAY_S = 60.0
"""Seconds that the backend may be away while a run is followed."""
LAST_LINES = 5
WIDTH = 160


@dataclass(frozen=True)
class Told:
    """What there is to say of a run: KFP keeps no reasons, so the steps' own records tell.

    Args:
        steps: Records of the steps that ended.
        tasks: Its steps as the backend sees them.
    """

    state: RunState
    steps: list[StepRecord]
    tasks: list[Task]
    decision: str = ""
    reason: str = ""

    @property
    def exit_code(self) -> int:
        if self.state.state in ("failed", "cancelled"):
            return next((step.exit_code for step in self.steps if step.exit_code), 1)
        return running.GATE_KEPT_CHAMPION if self.decision not in ("", "promote") else 0

    def document(self) -> dict[str, object]:
        return {
            "name": self.state.request.name,
            "run": self.state.run,
            "pipeline": self.state.request.pipeline,
            "state": self.state.state,
            "decision": self.decision or None,
            "reason": self.reason,
            "exit_code": self.exit_code,
            "seconds": round(self.state.seconds, 1),
            "steps": [step.plain() for step in self.steps],
            "url": self.state.url,
        }


def submit(pipeline: str, parameters: dict[str, Any], name: str, platform: Platform) -> RunState:
    """Have a run of a pipeline started; the one of this name, if there is one already.

    Args:
        parameters: Checked ones, all of them.
        name: Empty for one by the time.

    Raises:
        UserError: The source is on this machine, and the steps are not.
    """
    readable(parameters, platform)
    if platform.steps_namespace:
        begun(pipeline, platform.line())  # while everything else is imported
    runs, now = connect(platform).runs, time.time()
    name = name or time.strftime(f"{pipeline}-%Y%m%d-%H%M%S", time.gmtime(now))
    request = RunRequest(name=name, pipeline=pipeline, parameters=parameters, reason="asked for by hand", at=now)
    runs.start(request)
    found = runs.find(name)
    if found is None:
        raise UserError(f"{name} was the name of a run that is deleted by now.", "take another --name")
    return found


def readable(parameters: Mapping[str, object], platform: Platform) -> None:
    """See to it that those who work the run off can read its source.

    Raises:
        UserError: It is on this machine, and they are not.
    """
    for name in ("source", "images"):
        given = str(parameters.get(name, ""))
        if platform.steps_namespace and given and not given.startswith(SCHEMES):
            remedy = "copy it to a bucket: --data s3://BUCKET/FOLDER"
            raise UserError(f"{name} is {given}, which pods cannot read.", remedy)


def listed(limit: int, platform: Platform) -> list[RunState]:
    """The newest runs."""
    return connect(platform).runs.list(limit)


def cancelled(name: str, platform: Platform) -> RunState:
    """End a run, and give it as it is then."""
    runs = connect(platform).runs
    runs.cancel(_found(runs, name))
    return _found(runs, name)


def printed(name: str, step: str, platform: Platform) -> Iterator[str]:
    """What the steps of a run have printed so far, line by line, after their names.

    Raises:
        UserError: There is no such step.
    """
    runs = connect(platform).runs
    tasks = runs.tasks(_found(runs, name))
    if step and step not in {task.name for task in tasks}:
        begun = ", ".join(task.name for task in tasks) or "none that is known here"
        raise UserError(f"{name} has begun no step {step}.", f"steps are {begun}")
    for task in tasks:
        if step in ("", task.name):
            lines = task.printed.splitlines() or [f"({task.state}; the backend has no log of it)"]
            yield from (f"{task.name}: {line}\n" for line in lines)


def looked_at(state: RunState, platform: Platform) -> Told:
    """What is known of a run now."""
    return tell(state, connect(platform).runs.tasks(state) if state.run else [], platform)


def found(name: str, platform: Platform) -> RunState:
    """A run by its name or id.

    Raises:
        UserError: There is none.
    """
    return _found(connect(platform).runs, name)


def _found(runs: Runs, name: str) -> RunState:
    state = runs.find(name)
    if state is None:
        raise UserError(f"there is no run {name}.", "flywheel runs list")
    return state


@dataclass
class Follower:
    """Hands on the lines that steps say, each once.

    Of a large run Kubeflow loses sight of the steps that end last, and their logs: the steps' own records tell of them.

    Args:
        line: Receives `STEP: …`, and the seconds of the step so far.
    """

    line: Callable[[str, float], None]
    _read: dict[str, int] = field(default_factory=dict)
    _waits: dict[str, str] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    def look(self, tasks: list[Task]) -> None:
        for task in tasks:
            begun = self._read.get(task.name, 0)
            over = task.state not in ("waiting", "running")
            end = len(task.printed) if over else task.printed.rfind("\n") + 1
            for text in task.printed[begun:end].splitlines():
                if said := heard(text):
                    self._hand_on(said, task.seconds)
            self._read[task.name] = max(begun, end)
            if task.waits_for and task.waits_for != self._waits.get(task.name):
                self._waits[task.name] = task.waits_for
                self._hand_on(f"{task.name}: waits for {task.waits_for}", task.seconds)

    def look_at_records(self, steps: list[StepRecord]) -> None:
        for step in steps:
            if step.step not in self._ended:
                self._hand_on(f"{step.step}: {step.outcome}: {json.dumps(step.sentence)}", step.seconds)

    def _hand_on(self, said: str, seconds: float) -> None:
        step, _, rest = said.partition(": ")
        if rest.partition(": ")[0] in running.MARKS:
            if step in self._ended:
                return
            self._ended.add(step)
        self.line(said, seconds)


def followed(state: RunState, platform: Platform, quiet: bool) -> Told:
    """Show a run until it is over, and what came of it. Ctrl-C ends that, and lets the run go on."""
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(state.request.name)}[/] {state.url}")
    try:
        with running.shown(quiet) as progress:
            told = follow(state, platform, progress)
    except KeyboardInterrupt:
        name = state.request.name
        print(f"the run goes on; flywheel runs show {name} --follow, or flywheel runs cancel {name}", file=sys.stderr)
        raise SystemExit(130) from None
    show_end(told, console)
    return told


def follow(state: RunState, platform: Platform, progress: running.Progress) -> Told:
    """Show a run until it is over, and tell what came of it."""
    world, tasks = connect(platform), list[Task]()
    runs, store = world.runs, world.store
    follower, known, last = Follower(progress.line), dict[str, StepRecord](), time.monotonic()
    while True:
        try:
            state = runs.find(state.run or state.request.name) or state
            tasks = runs.tasks(state) if state.run else []
            steps = run_records(store, state.run, known) if state.run else []
            last = time.monotonic()
        except PlatformError as error:
            if time.monotonic() - last > AWAY_S:
                raise
            progress.status.update(f"{escape(error.message)} Asked again.")
        else:
            follower.look(tasks)
            follower.look_at_records(steps)
            if state.over:
                return tell(state, tasks, platform)
        time.sleep(LOOK_S)


def tell(state: RunState, tasks: list[Task], platform: Platform) -> Told:
    """What is known of a run."""
    try:
        steps = run_records(connect(platform).store, state.run) if state.run else []
        outcome = running.last_word(steps, platform) if state.request.pipeline == "flywheel" and state.over else None
    except FlywheelError as error:
        return Told(state, [], tasks, "", f"the steps' records cannot be read: {error}")
    reason = next((f"{step.step}: {step.sentence}" for step in steps if step.outcome == "failed"), "")
    if state.state == "failed" and not reason:
        reason = _last_words(state, tasks)
    if state.state != "failed":
        reason = outcome.reason if outcome else running.last_sentence(steps) or state.reason
    return Told(state, steps, tasks, outcome.decision if outcome else "", reason)


def _last_words(state: RunState, tasks: list[Task]) -> str:
    """Of a step that died without a record: its last lines."""
    dead = next((task for task in tasks if task.state == "failed"), None)
    if dead is None:
        return state.reason or "no step was begun: is the service account of its pods there, with its rights?"
    lines = [line for line in dead.printed.splitlines() if line.strip()][-LAST_LINES:]
    said = "its last lines are:\n" + "\n".join(lines) if lines else "it printed nothing"
    return f"{dead.name} ended without a word (killed, out of memory, or never started); {said}"


def show(told: Told) -> None:
    """Print a run for a person."""
    console = Console(highlight=False, soft_wrap=True)
    state = told.state
    console.print(
        f"[bold]{escape(state.request.name)}[/]  {state.request.pipeline}  {state.state}  {_span(state.seconds)}"
    )
    for step in told.steps:
        console.print(running.line_of(running.MARKS[step.outcome], step.step, step.seconds, step.sentence))
    done = {step.step for step in told.steps}
    for task in told.tasks:
        if task.state in ("waiting", "running") and task.name not in done:
            said = [said for line in task.printed.splitlines() if (said := heard(line))]
            last = f"waits for {task.waits_for}" if task.waits_for else "".join(said[-1:])
            console.print(running.line_of("…", task.name, task.seconds, last))
    show_end(told, console)
    if state.url:
        console.print(state.url)


def show_end(told: Told, console: Console) -> None:
    """Print what came of a run."""
    word = {"failed": "[red]failed[/]", "cancelled": "[red]cancelled[/]"}.get(told.state.state)
    word = word or (f"[bold]{told.decision}[/]" if told.decision else "")
    if told.state.over and (word or told.reason):
        console.print(f"{word} {escape(told.reason)}".strip())


def show_list(states: list[RunState]) -> None:
    """Print runs for a person, the newest first."""
    table = Table(box=None, pad_edge=False)
    for column in ("run", "pipeline", "state", "started", "took", "why"):
        table.add_column(column, overflow="fold")
    for state in states:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.request.at))
        table.add_row(
            escape(state.request.name), state.request.pipeline, state.state, at, _span(state.seconds),
            escape(state.request.reason),
        )  # fmt: skip
    wide(Console(highlight=False)).print(table if states else "no runs yet; next: flywheel submit --help")


def wide(console: Console) -> Console:
    """A console whose tables fold no name: those are there to be copied, also out of a file."""
    console.width = max(console.width, WIDTH)
    return console


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
