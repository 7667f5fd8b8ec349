"""What every step does around its own work: ports, reuse, one record of how it went, a reason where a person looks."""

import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from .artifacts import Lineage, Manifest, content_id
from .config import Platform, Section, image
from .errors import FlywheelError
from .images import VERSION
from .lines import MARK, say
from .manifests import keep, load
from .ports import Store
from .records import Record
from .wiring import World, connect

Outcome = Literal["done", "reused", "failed"]
ManifestT = TypeVar("ManifestT", bound=Manifest)


class StepRecord(Record):
    """How a step of a run went: `runs/<run>/<step>-<start in ms>.json` in the store.

    Args:
        ends: By its decision the run ends here; no other step is missed.
    """

    step: str
    started: float
    seconds: float
    outcome: Outcome
    sentence: str
    artifact: str = ""
    exit_code: int = 0
    ends: bool = False


@cache
def code_version() -> str:
    """Version of the package and hash of the code under components/: what reuse depends on."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")) + sorted(root.rglob("*.yaml")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"


TERMINATED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Step:
    """One step at work. Stages receive it from `step` and hand its ports to their pure core."""

    def __init__(self, name: str, run: str, world: World) -> None:
        self.name, self.run, self.world = name, run, world
        self.outcome: Outcome = "done"
        self.sentence = ""
        self.artifact = ""
        self.ends = False

    @property
    def store(self) -> Store:
        return self.world.store

    def lineage(self, *parents: str) -> Lineage:
        return Lineage(code=code_version(), image=image(), run=self.run, parents=parents)

    def reuse(
        self, kind: type[ManifestT], config: Section, inputs: tuple[str, ...], build: Callable[[], ManifestT]
    ) -> ManifestT:
        """Give the manifest that this stage made of the same config, inputs and code, or make it now.

        The manifest is written last, so a step that was killed before is simply run again.

        Args:
            kind: What the stage gives.
            config: Its validated section.
            inputs: Ids of everything else that it depends on.
            build: Does the work; every blob is written when it returns.
        """
        key = f"manifests/{self.name}/{content_id([config.plain(), inputs, code_version()])}.json"
        if self.store.exists(key):
            made = load(self.store, key, kind)
            self.outcome = "reused"
        else:
            made = build()
            keep(self.store, made)
            self.store.put(key, made.to_json())
        self.artifact = made.id
        return made


@contextmanager
def step(name: str, platform: str, run: str) -> Iterator[Step]:
    """Surround a stage: connect to the platform, say what happens, record how it ended.

    A FlywheelError becomes the step's last line and its exit code: KFP shows no other reason to a person.
    """
    started = time.time()
    say(f"{name}: started in run {run}")
    current: Step | None = None
    try:
        current = Step(name, run, connect(Platform.parse(platform)))
        yield current
    except BaseException as error:
        ended = isinstance(error, SystemExit) and error.code in TERMINATED
        reason = "it was ended from outside" if ended else str(error) or type(error).__name__
        code = error.exit_code if isinstance(error, FlywheelError) else 1
        _record(current, started, "failed", reason, code)
        say(f"{name}: failed: {json.dumps(reason, ensure_ascii=False)}")
        if isinstance(error, FlywheelError):
            raise SystemExit(code) from error
        raise
    _record(current, started, current.outcome, current.sentence)
    say(f"{name}: {current.outcome}: {json.dumps(current.sentence, ensure_ascii=False)}")


def _record(current: Step | None, started: float, outcome: Outcome, sentence: str, code: int = 0) -> None:
    if current is None:
        return
    record = StepRecord(
        step=current.name,
        started=started,
        seconds=round(time.time() - started, 3),
        outcome=outcome,
        sentence=sentence,
        artifact=current.artifact,
        exit_code=code,
        ends=current.ends,
    )
    try:
        current.store.put(f"runs/{current.run}/{current.name}-{int(started * 1000)}.json", record.line().encode())
    except FlywheelError as error:
        # The step's own end matters more than its record; a full store must not hide the first reason.
        print(f"{MARK}{current.name}: its record could not be written: {error}", file=sys.stderr)


def run_records(store: Store, run: str, known: dict[str, StepRecord] | None = None) -> list[StepRecord]:
    """How each step of a run went, in order of their start.

    Args:
        known: Records that were read before, by their keys; what is read now is added. They never change.
    """
    known = {} if known is None else known
    for key in store.list(f"runs/{run}/"):
        if key.count("/") == 2 and key not in known:
            known[key] = load(store, key, StepRecord)
    return sorted(known.values(), key=lambda record: record.started)
