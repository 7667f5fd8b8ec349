"""The demo: the wheel turns on one machine.

A detector is trained and served; the world changes; the flywheel notices, asks for labels, trains on them, tries the
new detector on users and promotes it; and it takes a broken one back.
"""

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from ...components.label.requests import requests
from ...components.recipes.detection.evaluate import score
from ...components.recipes.detection.log import pictures_of, read_window
from ...components.recipes.detection.predict import Predictor, decode
from ...components.register.stage import register, release_of
from ...components.runtime.artifacts import (
    EvalReport,
    Manifest,
    ModelPackage,
    MonitorReport,
    Release,
    RolloutReport,
    Sample,
    content_id,
)
from ...components.runtime.config import Platform
from ...components.runtime.errors import PlatformError, UserError
from ...components.runtime.manifests import find, keep
from ...components.runtime.packages import fetch_package
from ...components.runtime.wiring import connect
from .. import running
from ..platforms import read_yaml
from ..watcher import RunEnded, queue_of
from . import digits, planted
from .broken import broken
from .page import Story, render
from .world import Oracle, Users, cheap_camera

COUNTS = {"train": 400, "val": 100, "test": 100}
WINDOW = 200
CONFIG = Path(__file__).with_name("demo.yaml")
RETRAINING = {"epochs": 4, "learning_rate": 0.005, "test_fraction": 0.3, "min_class_map50": 0.0, "min_map50": 0.5}
CANARY = {"step_requests": 50, "max_seconds": 120, "replays": 60}
SHARE = 0.2
SHOWN = 12
LOGGED_WITHIN_S = 15.0
PASSING = ("decisions", "ledger", "notices", "predictions", "requests", "rollouts", "runs")
"""What the store keeps of one demo, and the next one must not find."""
ManifestT = TypeVar("ManifestT", bound=Manifest)


@dataclass(frozen=True)
class Watched:
    """A monitor's report, and what only the oracle knows: the true mAP50 of the champion on that window."""

    report: MonitorReport
    true_map50: float


@dataclass
class Wheel:
    """One demo at work, and all that its page tells."""

    root: Path
    platform: Platform
    console: Console
    port: int
    quiet: bool
    url: str
    began: float = field(default_factory=time.time)
    oracle: Oracle = field(default_factory=Oracle)
    acts: list[tuple[float, str]] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    gates: list[EvalReport] = field(default_factory=list)
    rollouts: list[RolloutReport] = field(default_factory=list)
    ended: list[running.Ended] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = connect(self.platform)
        self.parameters = running.read_parameters(str(self.root / "data" / "data.yaml"), CONFIG, [])
        self.endpoint = str(self.parameters["endpoint"])
        self.users = Users(self.url, self.endpoint, self.world.serving)

    def act(self, said: str) -> None:
        self.acts.append((time.time(), said))
        self.console.print(f"\n[bold]{len(self.acts)}. {escape(said)}[/]")

    def run(self, pipeline: str, given: dict[str, Any]) -> running.Ended:
        """Run a pipeline, and keep what it gave.

        Raises:
            PlatformError: It failed; with its reason.
        """
        ended = running.run(
            running.check(pipeline, given), self.platform, self.root, self.port, self.quiet, pipeline=pipeline
        )
        if ended.run.failure:
            raise PlatformError(f"{pipeline} failed: {ended.reason}", f"read {ended.log}")
        self.ended.append(ended)
        self.gates += self.given(ended, "evaluate", EvalReport)
        self.rollouts += self.given(ended, "rollout", RolloutReport)
        return ended

    def given(self, ended: running.Ended, step: str, kind: type[ManifestT]) -> list[ManifestT]:
        """What a step of a run gave, if it came to that."""
        return [find(self.world.store, one.artifact, kind) for one in ended.run.steps if one.step == step]

    def first(self) -> None:
        self.act("A detector is trained on 400 pictures, judged, registered and served.")
        ended = self.run("flywheel", self.parameters)
        if self.world.serving.read(self.endpoint).champion is None:
            raise PlatformError(f"no detector is served: {ended.reason}", f"read {ended.log}")

    def monitor(self) -> MonitorReport:
        """Run the monitor on what users asked last, once all of it is in the log."""
        state = self.world.serving.read(self.endpoint)
        self._await_the_log()
        again = read_yaml(CONFIG, "config") | RETRAINING | CANARY
        retrain = "\n".join(f"{name}={value}" for name, value in again.items())
        given = {"endpoint": self.endpoint, "window": WINDOW, "cooldown_s": 0, "retrain_with": retrain}
        ended = self.run("monitor", given)
        (report,) = self.given(ended, "monitor", MonitorReport)
        if state.champion is not None and report.count:
            self.watched.append(Watched(report, self.true_map50(state.champion, report)))
        return report

    def true_map50(self, release: Release, report: MonitorReport) -> float:
        store = self.world.store
        window, _ = read_window(store, self.endpoint, f"v{release.version}", report.count, before=report.last + 1e-6)
        package = ModelPackage.from_json(store.get(release.package_uri), release.package_uri)
        with tempfile.TemporaryDirectory(prefix="flywheel-truth-") as folder:
            predictor = Predictor(fetch_package(store, package, Path(folder)))
            images = [decode(content) for content in pictures_of(store, window.pictures)]
            found = [predictor.predict(image, 0.001) for image in images]
        samples = [
            Sample(
                path=picture.sha256,
                image=package.files["model.onnx"],
                width=image.shape[1],
                height=image.shape[0],
                boxes=self.oracle.boxes[picture.sha256],
                split=None,
                group=picture.sha256,
            )
            for picture, image in zip(window.pictures, images, strict=True)
        ]
        return score(found, samples, package.names).map50 or 0.0

    def _await_the_log(self) -> None:
        """Wait until the log holds all that the stable version answered: it is written in batches."""
        state = self.world.serving.read(self.endpoint)
        asked = sum(sent.version == state.stable and sent.status == 200 for sent in self.users.sent)
        deadline = time.monotonic() + LOGGED_WITHIN_S
        while time.monotonic() < deadline:
            if read_window(self.world.store, self.endpoint, state.stable or "", asked)[0].requests >= asked:
                return
            time.sleep(0.2)

    def turn(self, changed: list[bytes]) -> None:
        """From labels to a new champion: what `flywheel watch` does when it finds a run in its queue."""
        runs = queue_of(self.platform)
        for request in runs.waiting():
            with self.users.during_canaries(changed):
                ended = self.run(request.pipeline, dict(request.parameters))
            decision = ended.outcome.decision if ended.outcome else ""
            runs.end(
                RunEnded(
                    name=request.name,
                    run=ended.run.id,
                    decision=decision,
                    reason=ended.reason,
                    exit_code=ended.exit_code,
                )
            )

    def plant(self) -> Release:
        """Register a release that fails on a share of all requests, as if its gate had not seen such images."""
        world, champion = self.world, self.world.serving.read(self.endpoint).champion
        assert champion is not None
        package = broken(world.store, find(world.store, champion.package, ModelPackage), SHARE)
        gate = find(world.store, champion.report, EvalReport)
        report = gate.but(id=content_id([gate.id, package.id]), package=package.id, reason="planted by the demo")
        keep(world.store, report)
        uri = keep(world.store, package)
        version, _ = register(world.mlflow, champion.model, package, report, uri)
        made = release_of(champion.model, version, package, report, uri, package.lineage)
        keep(world.store, made)
        return made


def play(root: Path, port: int, quiet: bool) -> dict[str, Any]:
    """Play the demo in a folder; played again, it begins anew, and what was computed before is reused.

    Raises:
        UserError: The folder holds something else, or is being served.
        PlatformError: Something did not come about; the message says what and why.
    """
    from ...components.serving.serve import serving

    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    platform = Platform.local(root).but(notify=())  # the demo tells enough
    begin_anew(root, platform)
    if not (root / "data" / "data.yaml").exists():
        console.print(f"drawing {sum(COUNTS.values())} pictures of handwriting on photographs, and some bad files")
        planted.plant(digits.write(root / "data", COUNTS).parent)
    with serving(platform, port) as url:
        wheel = Wheel(root, platform, console, port, quiet, url)
        wheel.first()
        wheel.act("Users send pictures of the same kind.")
        wheel.users.ask(wheel.oracle.pictures(2 * WINDOW, seed=1))
        wheel.monitor()
        wheel.act("The camera changes.")
        for seed in (2, 3):
            wheel.users.ask(wheel.oracle.pictures(WINDOW, seed=seed, camera=cheap_camera))
            wheel.monitor()
        wheel.act("The labels that were asked for arrive. A new detector is trained, judged, and tried on users.")
        for request in requests(wheel.world.store, wheel.endpoint):
            wheel.oracle.label(request)
        wheel.monitor()
        more = wheel.oracle.pictures(2 * WINDOW, seed=4, camera=cheap_camera)
        wheel.turn(more)
        wheel.act("The new champion is asked about pictures of the new camera.")
        wheel.users.ask(more[:WINDOW])
        wheel.monitor()
        wheel.act(f"A release that answers {SHARE:.0%} of its requests with errors is tried on users.")
        bad = wheel.plant()
        with wheel.users.during_canaries(more):
            version = {"model": bad.model, "version": bad.version, "endpoint": wheel.endpoint}
            wheel.run("rollout", version | CANARY | {"replays": 0})
        wheel.act("The end.")
        seconds = time.time() - wheel.began
        story = Story.of(wheel, more[:SHOWN])
    (root / "page.html").write_text(render(story, seconds))
    return _told(wheel, seconds)


def begin_anew(root: Path, platform: Platform) -> None:
    """Take away what an earlier demo left, but for data and whatever is reused by its content.

    Raises:
        UserError: The folder holds something else, or is being served.
    """
    marker = root / "this-is-the-demo"
    local = connect(platform).serving
    if local.url(""):
        raise UserError(f"{root} is being served at {local.url('')}.", "end flywheel serve, or give another --root")
    if (root / "store").exists() and not marker.exists():
        raise UserError(f"{root} holds a flywheel that is not the demo's.", "give --root a folder of its own")
    root.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for name in ("serving", "queue", "landing", *(f"store/{part}" for part in PASSING)):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "mlflow.db").unlink(missing_ok=True)


def _told(wheel: Wheel, seconds: float) -> dict[str, Any]:
    """Print what came of it, and give it as a document."""
    failed = [sent for sent in wheel.users.sent if sent.status != 200]
    bad = wheel.rollouts[-1]
    gate = wheel.gates[-1]
    before, after = gate.champion_scores, gate.challenger_scores
    program = "flywheel" if shutil.which("flywheel") else os.path.relpath(sys.argv[0])
    page = wheel.root / "page.html"
    if before is not None and before.map50 is not None and after.map50 is not None:
        wheel.console.print(
            f"\nmAP50 on the new camera's holdout: [bold]{before.map50:.3f} → {after.map50:.3f}[/]; "
            f"{len(wheel.users.sent)} requests, {len(failed)} of them failed, all by the release that was taken back."
        )
    wheel.console.print(
        f"page:  {page}\nagain: {program} serve --root {wheel.root}"
        f"\nwho:   {program} history --endpoint {wheel.endpoint} --root {wheel.root}"
    )
    return {
        "page": str(page),
        "seconds": round(seconds, 1),
        "map50": wheel.gates[0].challenger_scores.map50,
        "map": wheel.gates[0].challenger_scores.map,
        "new_holdout": {"v1": before.map50 if before else None, "v2": after.map50},
        "monitor": [one.report.decision for one in wheel.watched],
        "rollouts": [rollout.decision for rollout in wheel.rollouts],
        "requests": len(wheel.users.sent),
        "failed": {version: sum(sent.version == version for sent in failed) for version in {s.version for s in failed}},
        "reason": bad.reason,
        "runs": [ended.document() for ended in wheel.ended],
    }
