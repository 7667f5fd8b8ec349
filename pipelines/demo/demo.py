"""The demo: a data set, one run of the flywheel, 200 questions to what it serves, and a page about all of it."""

import os
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from ...components.runtime.artifacts import ModelPackage, Release
from ...components.runtime.config import Platform
from ...components.runtime.errors import PlatformError
from ...components.runtime.wiring import World, connect
from .. import running
from . import digits, planted
from .page import Asked, Story, render

COUNTS = {"train": 400, "val": 100, "test": 100}
QUESTIONS = 200
CONFIG = Path(__file__).with_name("demo.yaml")


@dataclass(frozen=True)
class Kept:
    """Where the demo keeps what it made."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def page(self) -> Path:
        return self.root / "page.html"

    @property
    def picture(self) -> Path:
        return self.root / "detections.jpg"


def play(root: Path, port: int, quiet: bool) -> dict[str, Any]:
    """Play the demo in a folder; played again, all that is still valid is reused.

    Raises:
        PlatformError: No detector came to be served; the message says why.
    """
    from ...components.serving.serve import serving

    started = time.monotonic()
    kept, platform = Kept(root), Platform.local(root)
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    if not (kept.data / "data.yaml").exists():
        console.print(
            f"drawing {sum(COUNTS.values())} images of handwriting on photographs, and planting some bad files"
        )
        planted.plant(digits.write(kept.data, COUNTS).parent)
    parameters = running.read_parameters(str(kept.data / "data.yaml"), CONFIG, [])
    world = connect(platform)
    with serving(platform, port):
        ended = running.run(parameters, platform, root, port, quiet)
        state = world.serving.read(str(parameters["endpoint"]))
        release = state.champion
        if ended.run.failure or release is None:
            raise PlatformError(f"no detector is served: {ended.document()['reason']}", f"read {ended.log}")
        asked = _ask(world, release, state.endpoint, kept.data / "images" / "test", quiet)
    story = Story.of(world, state, release, ended.run.steps, asked)
    kept.page.write_text(render(story, time.monotonic() - started))
    kept.picture.write_bytes(story.picture())
    program = "flywheel" if shutil.which("flywheel") else os.path.relpath(sys.argv[0])
    console.print(
        f"\n[bold]mAP50 {story.report.challenger_scores.map50:.3f}[/] on the holdout; {QUESTIONS} questions answered, "
        f"{asked.median_ms:.1f} ms each.\npage:  {kept.page}\nagain: {program} serve --root {root}"
        f"\nask:   {program} predict {asked.images[0]} --endpoint {parameters['endpoint']} --root {root}"
    )
    return {
        "page": str(kept.page),
        "picture": str(kept.picture),
        "map50": story.report.challenger_scores.map50,
        "map": story.report.challenger_scores.map,
        "answered": len(asked.seconds),
        "median_ms": asked.median_ms,
        "seconds": round(time.monotonic() - started, 1),
        "run": ended.document(),
    }


def _ask(world: World, release: Release, endpoint: str, folder: Path, quiet: bool) -> Asked:
    """Ask the endpoint about the holdout's images, again and again."""
    from ...components.serving.client import infer

    names = ModelPackage.from_json(world.store.get(release.package_uri), release.package_uri).names
    images = sorted(folder.glob("test-*.jpg"))
    contents = [image.read_bytes() for image in images]
    url = world.serving.url(endpoint)
    answers, seconds = [], []
    numbers = range(QUESTIONS)
    for number in numbers if quiet else track(numbers, "asking", console=Console(stderr=True), transient=True):
        start = time.perf_counter()
        answers.append(infer(url, endpoint, contents[number % len(images)]))
        seconds.append(time.perf_counter() - start)
    return Asked(images, contents, answers[: len(images)], seconds, names, statistics.median(seconds) * 1000)
