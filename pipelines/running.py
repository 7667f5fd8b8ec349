"""`flywheel run`: parameters from a person, one run to its end with its progress shown, and what came of it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..components.runtime import config
from ..components.runtime.config import Platform
from ..components.runtime.decisions import Outcome, concluded
from ..components.runtime.errors import UserError
from ..components.runtime.step import StepRecord
from ..components.runtime.wiring import connect
from . import local
from .platforms import read_yaml

GATE_KEPT_CHAMPION = 4
SECTIONS: dict[str, tuple[type[config.Section], ...]] = {
    "flywheel": config.FLYWHEEL,
    "monitor": (config.Monitor,),
    "rollout": (config.Recall, config.Rollout),
    "batch_predict": (config.Choice, config.Predict),
}
"""What a person may set, by pipeline."""

MARKS = {"done": "[green]✓[/]", "reused": "[cyan]↺[/]", "failed": "[red]✗[/]"}


def read_parameters(data: str, file: Path | None, pairs: list[str]) -> dict[str, object]:
    """Gather the parameters of a run: a file, then NAME=VALUE pairs, then --data; later ones win.

    Raises:
        UserError: A parameter is unknown, wrong or missing.
    """
    given = gather(file, pairs)
    if data:
        given["source"] = source_of(data)
    if not given.get("source"):
        raise UserError("no data set was named.", "flywheel run --data path/to/data.yaml")
    return check("flywheel", given)


def parameters_for(pipeline: str, data: str, file: Path | None, pairs: list[str]) -> dict[str, Any]:
    """The checked parameters of any pipeline: a file, then NAME=VALUE pairs, then --data; later ones win.

    Raises:
        UserError: There is no such pipeline, or a parameter is unknown, wrong or missing.
    """
    if pipeline == "flywheel":
        return read_parameters(data, file, pairs)
    given = gather(file, pairs)
    if data and pipeline != "batch_predict":
        raise UserError(f"{pipeline} takes no --data.", f"flywheel submit {pipeline}, without it")
    if pipeline == "batch_predict":
        return for_batch(given | ({"images": data} if data else {}))
    return for_monitor(given) if pipeline == "monitor" else check(pipeline, given)


def for_batch(given: Mapping[str, object]) -> dict[str, Any]:
    """The checked parameters of a batch.

    Raises:
        UserError: One is unknown or wrong, or no images are named.
    """
    if not given.get("images"):
        raise UserError("no images were named.", "flywheel batch --images path/to/images")
    return check("batch_predict", {**given, "images": source_of(str(given["images"]))})


def for_monitor(given: Mapping[str, object]) -> dict[str, Any]:
    """The checked parameters of the monitor. Those of the flywheel among them are what it retrains with.

    Raises:
        UserError: One is unknown or wrong.
    """
    known = config.names_of((config.Monitor,))
    monitor = check("monitor", {name: given[name] for name in known if name in given})
    rest = {name: value for name, value in given.items() if name not in known}
    check("flywheel", {"source": "none"} | rest)
    if not monitor["retrain_with"]:  # as it was trained, but for what makes it a retraining
        monitor["retrain_with"] = "\n".join(f"{name}={value}" for name, value in rest.items() if name != "source")
    return monitor


def gather(file: Path | None, pairs: list[str]) -> dict[str, object]:
    """Parameters of a file, then NAME=VALUE pairs; later ones win.

    Raises:
        UserError: A pair is none.
    """
    given: dict[str, object] = dict(read_yaml(file, "config")) if file else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"-p {pair} is not NAME=VALUE.", f"-p {name}=VALUE")
        given[name] = value
    return given


def source_of(data: str) -> str:
    """The parameter `source`: a path is taken from where the person is."""
    return data if "://" in data else str(Path(data).absolute())


def check(pipeline: str, given: Mapping[str, object]) -> dict[str, Any]:
    """Check a run's parameters, defaults filled in, before anything is started.

    Raises:
        UserError: There is no such pipeline; or a parameter is unknown, wrong or missing.
    """
    if pipeline not in SECTIONS:
        raise UserError(f"{pipeline} is not a pipeline: {', '.join(SECTIONS)} are known.", "correct its name")
    for name, found in given.items():
        if isinstance(found, str) and "\n" in found and name != "retrain_with":
            raise UserError(f"{name} has more than one line.", f"correct {name}")
    return config.check(given, SECTIONS[pipeline])


@dataclass(frozen=True)
class Ended:
    """What came of a run: its steps, and the last word on its data."""

    run: local.Run
    outcome: Outcome | None
    log: Path

    @property
    def exit_code(self) -> int:
        if self.run.failure:
            return self.run.exit_code
        kept = self.outcome is not None and self.outcome.decision != "promote"
        return GATE_KEPT_CHAMPION if kept else 0

    @property
    def reason(self) -> str:
        return self.run.failure or (self.outcome.reason if self.outcome else last_sentence(self.run.steps))

    def document(self) -> dict[str, object]:
        return {
            "run": self.run.id,
            "decision": self.outcome.decision if self.outcome else None,
            "reason": self.reason,
            "exit_code": self.exit_code,
            "steps": [step.plain() for step in self.run.steps],
            "log": str(self.log),
        }


def line_of(mark: str, step: str, seconds: float, said: str) -> str:
    """What a step came to, or does: as rich prints it."""
    return f"{mark} [bold]{step:9}[/] {seconds:6.1f} s  {escape(said)}"


class Progress:
    """Shows what the steps say: a line for each that ended, and below it what the one at work does."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status = console.status("starting")
        self._since: dict[str, float] = {}

    def line(self, said: str, seconds: float | None = None) -> None:
        """Show a line that a step said.

        Args:
            seconds: How long the step has been at work; without it, since its first line.
        """
        step, _, rest = said.partition(": ")
        since = self._since.setdefault(step, time.monotonic())
        outcome, _, sentence = rest.partition(": ")
        if outcome in MARKS:
            seconds = time.monotonic() - since if seconds is None else seconds
            self.console.print(line_of(MARKS[outcome], step, seconds, json.loads(sentence)))
        else:
            self.status.update(f"[bold]{step}[/] {escape(rest)}")
            if not self.console.is_terminal and not rest.startswith("started"):
                self.console.print(f"  {step}: {escape(rest)}")


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    progress = Progress(Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True))
    with progress.status:
        yield progress


def run(
    parameters: dict[str, object], platform: Platform, root: Path, port: int, quiet: bool, pipeline: str = "flywheel"
) -> Ended:
    """Run a pipeline once, with its endpoint served while it works.

    Args:
        parameters: Checked ones, all of them.
        root: Receives the run's log, `runs/<time>-<pipeline>.log`.
        port: Of the endpoint, if it is served on this machine and nobody does so yet.
    """
    from ..components.serving.serve import serving

    log = root / "runs" / time.strftime(f"%Y%m%d-%H%M%S-{pipeline}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    served_here = not platform.serving_namespace and pipeline != "batch_predict"  # which asks no endpoint
    with serving(platform, port) if served_here else nullcontext(), shown(quiet) as progress:
        ended = local.run(pipeline, parameters, platform, log, progress.line)
    outcome = last_word(ended.steps, platform) if pipeline == "flywheel" else None
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    if ended.failure:
        console.print(f"[red]failed[/] {escape(ended.failure)}\nlog: {log}")
    elif outcome:
        console.print(f"[bold]{outcome.decision}[/] {escape(outcome.reason)}")
    return Ended(ended, outcome, log)


def last_sentence(steps: Sequence[StepRecord]) -> str:
    """What the last step that decided something said."""
    return "".join([step.sentence for step in steps if step.step != "notify"][-1:])


def last_word(steps: Sequence[StepRecord], platform: Platform) -> Outcome | None:
    """The outcome that stands for the data version of a run with these steps."""
    ids = {step.step: step.artifact for step in steps}
    if "snapshot" not in ids or "resolve" not in ids:
        return None
    from ..components.runtime.artifacts import Resolution
    from ..components.runtime.manifests import find

    store = connect(platform).store
    return concluded(store, ids["snapshot"], find(store, ids["resolve"], Resolution).config)
