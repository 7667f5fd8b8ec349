"""The parts of the demo: its bad release, its oracle, its timeline, and that it spares what is not its own."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from kfp_flywheel.components.recipes.detection import golden
from kfp_flywheel.components.recipes.detection.predict import Predictor, decode
from kfp_flywheel.components.runtime.artifacts import LabelRequest
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.packages import fetch_package
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.pipelines.demo.broken import broken
from kfp_flywheel.pipelines.demo.demo import begin_anew
from kfp_flywheel.pipelines.demo.timeline import Mark, timeline
from kfp_flywheel.pipelines.demo.world import Oracle, cheap_camera
from kfp_flywheel.pipelines.traffic import Sent

from tests.tiny import tiny_images, tiny_package


def test_the_bad_release_passes_its_golden_images_and_fails_on_its_share(world: World, tmp_path: Path) -> None:
    package = broken(world.store, tiny_package(world.store), 0.2)
    predictor = Predictor(fetch_package(world.store, package, tmp_path))
    golden.check(predictor, tmp_path)
    failed = 0
    for image in tiny_images(400):
        try:
            predictor.predict(decode(image))
        except PlatformError as error:
            failed += "not finite" in str(error)
    assert 50 < failed < 110


def test_it_breaks_what_it_is_told_and_nothing_when_there_is_no_room(world: World) -> None:
    with pytest.raises(ValueError, match="leave no gap"):
        broken(world.store, tiny_package(world.store), 0.99)


def test_the_oracle_labels_exactly_what_was_asked_for(tmp_path: Path) -> None:
    oracle = Oracle()
    sent = oracle.pictures(5, seed=1, camera=cheap_camera)
    names = tuple(f"{hashlib.sha256(content).hexdigest()[:16]}.jpg" for content in sent[:3])
    folder = tmp_path / "request"
    folder.mkdir()
    request = LabelRequest(
        id="r", endpoint="d", release="r", at=0.0, reason="", folder=f"file://{folder}", images=names
    )  # fmt: skip
    oracle.label(request)
    files = sorted(path.name for path in (folder / "labels").iterdir())
    assert files == sorted(name.replace(".jpg", ".txt") for name in names)
    boxes = oracle.boxes[hashlib.sha256(sent[0]).hexdigest()]
    lines = (folder / "labels" / names[0].replace(".jpg", ".txt")).read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == [box[0] for box in boxes]
    dark = np.mean([decode(content).mean() for content in sent])
    assert dark < 0.7 * np.mean([decode(content).mean() for content in oracle.pictures(5, seed=1)])


def test_the_timeline_shows_versions_failures_and_decisions() -> None:
    sent = [
        Sent(at=10.0 + n / 10, version="v1" if n % 2 else "v2", status=500 if n == 4 else 200, seconds=0.01)
        for n in range(40)
    ]
    marks = [Mark(11.0, "monitor", "alert", "different"), Mark(11.1, "rollout", "promoted", "fine")]
    drawn = timeline(sent, marks, 10.0, 20.0)
    assert drawn.count("<rect") == 2 * 2 + 2  # two versions in two bins, and the legend
    assert drawn.count('fill="var(--bad)"') == 1 + 1
    assert ">1</text>" in drawn
    assert ">2</text>" in drawn
    assert timeline([], [], 10.0, 20.0).startswith("<svg")


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path: Path) -> None:
    platform = Platform.local(tmp_path)
    mine = tmp_path / "store" / "ledger" / "mine.json"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(UserError, match="holds a flywheel that is not the demo's"):
        begin_anew(tmp_path, platform)
    assert mine.exists()


def test_the_demos_own_folder_is_begun_anew_but_for_what_can_be_reused(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    platform = Platform.local(root)
    begin_anew(root, platform)
    for name in ("store/ledger/e/1.json", "store/blobs/aa/b", "data/data.yaml", "landing/d/x", "mlflow.db"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    begin_anew(root, platform)
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert left == {"this-is-the-demo", "store/blobs/aa/b", "data/data.yaml"}
