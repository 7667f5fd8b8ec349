"""The monitor over a real log, a real package and a real landing folder: from quiet to a retraining that is started."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from kfp_flywheel.components.label.requests import requests
from kfp_flywheel.components.monitor.stage import run
from kfp_flywheel.components.recipes.detection import log
from kfp_flywheel.components.recipes.detection.features import FEATURES, features
from kfp_flywheel.components.recipes.detection.predict import Image, Predictor, decode
from kfp_flywheel.components.recipes.detection.reference import Reference
from kfp_flywheel.components.runtime.artifacts import (
    DatasetVersion,
    Holdout,
    ModelPackage,
    MonitorReport,
    Release,
    Sample,
    content_id,
)
from kfp_flywheel.components.runtime.blobs import put_blob
from kfp_flywheel.components.runtime.manifests import find, keep
from kfp_flywheel.components.runtime.packages import fetch_package
from kfp_flywheel.components.runtime.ports import Store
from kfp_flywheel.components.runtime.records import to_lines
from kfp_flywheel.components.runtime.step import run_records
from kfp_flywheel.components.runtime.wiring import World

from tests.canaries import release_of
from tests.releases import with_champion
from tests.tiny import LINEAGE, NAMES, tiny_package

WINDOW = 60
SINCE = 1_000_000.0
NIGHT, DAY = (40, 5.0), (150, 30.0)
"""Mean and noise of the pictures: before the change, and after."""


def picture(rng: np.random.Generator, mean: float, noise: float) -> Image:
    base = rng.uniform(mean - 20, mean + 20, 3)
    return np.clip(base + rng.normal(0, noise, (64, 84, 3)), 0, 255).astype(np.uint8)


def pictures(seed: int, count: int, kind: tuple[float, float]) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [bytes(cv2.imencode(".png", picture(rng, *kind))[1].tobytes()) for _ in range(count)]


def refer(predictor: Predictor, images: list[bytes]) -> Reference:
    found = [(decode(content), predictor.predict(decode(content))) for content in images]
    return Reference(
        samples=np.array([hashlib.sha256(content).hexdigest() for content in images]),
        feature_names=np.array(FEATURES),
        features=np.array([list(features(image, seen).values()) for image, seen in found], np.float32),
        scores=np.concatenate([seen.scores for _, seen in found]),
        offsets=np.cumsum([0, *(len(seen) for _, seen in found)], dtype=np.int64),
        class_counts=np.stack([np.bincount(seen.classes, minlength=len(NAMES)) for _, seen in found]),
        embeddings=np.stack([seen.embedding for _, seen in found]),
    )


def holdout(store: Store, predictor: Predictor, images: list[bytes]) -> DatasetVersion:
    """Labelled with what the model sees: it is perfect there."""
    samples = []
    for content in images:
        image = decode(content)
        height, width = image.shape[:2]
        seen = predictor.predict(image)
        x0, y0, x1, y1 = (seen.boxes / np.array([width, height] * 2)).T
        placed = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1).tolist()
        boxes = tuple((int(kind), *box) for kind, box in zip(seen.classes, placed, strict=True))
        blob = put_blob(store, content, ".png")
        samples.append(
            Sample(
                path=blob.sha256, image=blob, width=width, height=height, boxes=boxes, split="test", group=blob.sha256
            )
        )
    index = put_blob(store, to_lines(samples), ".jsonl")
    made = DatasetVersion(
        id=content_id(["monitored", index.sha256]),
        lineage=LINEAGE,
        names=NAMES,
        counts={"train": 0, "val": 0, "test": len(samples)},
        index=index,
        holdouts=(Holdout(dataset="monitored", count=len(samples), index=index),),
    )
    keep(store, made)
    return made


class Watched:
    """An endpoint whose champion has a reference, and whose requests are logged."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        bare = tiny_package(world.store)
        self.predictor = Predictor(fetch_package(world.store, bare, folder / "bare"))
        known = pictures(1, 120, NIGHT)
        np.savez(folder / "reference.npz", **refer(self.predictor, known)._asdict())
        files = bare.files | {"reference.npz": put_blob(world.store, folder / "reference.npz", ".npz")}
        self.package = bare.but(id=content_id(["monitored", *(blob.sha256 for blob in files.values())]), files=files)
        keep(world.store, self.package)
        given = release_of(world.store, "1", self.package)
        self.release: Release = given.but(dataset=holdout(world.store, self.predictor, known).id)
        world.serving.write(with_champion(world.serving.read("detector"), self.release).but(since=SINCE))
        self.asked, self.runs = 0, 0

    def ask(self, kind: tuple[float, float], count: int = WINDOW, seed: int = 2) -> list[bytes]:
        """Log requests as the model server does."""
        contents = pictures(seed + self.asked, count, kind)
        for start in range(0, count, 20):
            entries = []
            for content in contents[start : start + 20]:
                self.asked += 1
                found = self.predictor.predict(decode(content))
                at = SINCE + self.asked / 100
                entries.append(log.Entry(at, content, features(decode(content), found), found))
            log.write(self.world.store, "detector", "v1", self.package.id, "ab", entries)
        return contents

    def monitor(self, **changes: object) -> MonitorReport:
        self.runs += 1
        paths = [str(self.folder / name) for name in ("report", "page")]
        # The tiny model sees its boxes whatever comes, so what the change costs is little, and yet something.
        settings = {"window": WINDOW, "cooldown_s": 0.0, "harm_drop": 0.001} | changes
        run(*paths, self.world.platform.line(), f"run-{self.runs}", **settings)
        self.sentence = run_records(self.world.store, f"run-{self.runs}")[-1].sentence
        self.page = Path(paths[1]).read_text()
        return MonitorReport.read(paths[0])

    def label(self, folder: str, names: tuple[str, ...]) -> None:
        labels = Path(folder.removeprefix("file://"), "labels")
        labels.mkdir(exist_ok=True)
        for name in names:
            (labels / name).with_suffix(".txt").write_text("0 0.5 0.5 0.3 0.3\n")


@pytest.fixture
def watched(world: World, tmp_path: Path) -> Watched:
    return Watched(world, tmp_path)


def test_without_a_champion_or_enough_requests_nothing_is_known(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "nobody"
    folder.mkdir()
    assert run(str(folder / "r"), str(folder / "p"), world.platform.line(), "r") == "undecided"
    one = Watched(world, tmp_path)
    assert one.monitor().decision == "undecided"
    one.ask(NIGHT, WINDOW - 1)
    report = one.monitor()
    assert (report.decision, report.count, report.tests) == ("undecided", WINDOW - 1, ())
    assert one.sentence == f"undecided: {WINDOW - 1} requests are recorded, and {WINDOW} make a window."


def test_from_quiet_to_a_retraining(watched: Watched) -> None:
    watched.ask(NIGHT, 2 * WINDOW)
    quiet = watched.monitor()
    assert (quiet.decision, quiet.request, quiet.confidence_drop) == ("quiet", "", pytest.approx(0, abs=0.05))
    assert "Nothing has changed" in watched.page

    first = watched.ask(DAY)
    alert = watched.monitor()
    assert alert.decision == "alert"
    assert {test.name for test in alert.tests if test.drifted} >= {"brightness", "noise"}
    assert alert.confidence_drop is not None
    assert alert.confidence_drop > 0.04, "the tiny model must be less sure by day for this test"
    assert "harm if the next window shows it too" in alert.reason
    assert requests(watched.world.store, "detector") == []

    second = watched.ask(DAY)
    harmed = watched.monitor()
    assert harmed.decision == "retrain"
    (asked,) = requests(watched.world.store, "detector")
    assert harmed.request == asked.id
    assert {name[:16] for name in asked.images} == {hashlib.sha256(c).hexdigest()[:16] for c in first + second}
    assert f"Labels for {2 * WINDOW} images are asked for" in watched.sentence

    again = watched.monitor()  # labels that never come: nothing more is asked for, and it is said what is awaited
    assert (again.decision, again.request, again.started) == ("retrain", asked.id, ())
    assert f"{2 * WINDOW} of {2 * WINDOW} labels are awaited in {asked.folder}" in watched.sentence
    assert len(requests(watched.world.store, "detector")) == 1

    watched.label(asked.folder, asked.images[:-1])
    assert watched.monitor().started == ()
    assert "1 of 120 labels are awaited" in watched.sentence
    watched.label(asked.folder, asked.images)
    began = watched.monitor(budget=1, retrain_with="epochs=3")
    assert began.started == (f"retrain-{asked.id}",)
    (queued,) = [state.request for state in watched.world.runs.list(10)]
    assert (queued.pipeline, queued.parameters["source"], queued.parameters["epochs"]) == ("flywheel", asked.folder, 3)
    assert (queued.parameters["start_from"], queued.parameters["grow_from"]) == ("champion", "champion")
    assert watched.monitor(budget=1).started == ()  # once
    assert f"retraining retrain-{asked.id} has not ended" in watched.sentence


def test_a_reference_that_is_missing_is_undecided_and_says_so(watched: Watched) -> None:
    watched.ask(NIGHT)
    blob = watched.package.files["reference.npz"]
    files = watched.package.files | {"reference.npz": put_blob(watched.world.store, b"torn", ".npz")}
    assert files["reference.npz"] != blob
    other = watched.package.but(id="torn", files=files)
    keep(watched.world.store, other)
    release = release_of(watched.world.store, "1", other).but(dataset=watched.release.dataset)
    state = watched.world.serving.read("detector")
    watched.world.serving.write(with_champion(state, release).but(since=SINCE))
    report = watched.monitor()
    assert report.decision == "undecided"
    assert "does not hold the reference of a package" in report.reason


def test_torn_files_of_the_log_are_left_out_and_told(watched: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    watched.ask(NIGHT, 2 * WINDOW)
    root = Path(watched.world.store.root.removeprefix("file://"))
    newest = sorted((root / "predictions" / "detector").iterdir())[-1]
    content = newest.read_bytes()
    newest.unlink()
    newest.write_bytes(content[: len(content) // 2])
    report = watched.monitor()
    assert (report.decision, report.count) == ("quiet", WINDOW)
    assert f"{newest.name} was left out" in capfd.readouterr().out


def test_labels_that_nobody_asked_for_show_a_loss_that_no_feature_shows(watched: Watched) -> None:
    """Concept drift: the pictures are the same, and what is in them is called otherwise."""
    contents = watched.ask(NIGHT, 2 * WINDOW)
    assert watched.monitor().measured_drop is None
    landing = Path(watched.world.platform.landing.removeprefix("file://"), "detector", "labels")
    landing.mkdir(parents=True)
    for content in contents[:40]:
        (landing / f"{hashlib.sha256(content).hexdigest()[:16]}.txt").write_text("1 0.1 0.1 0.05 0.05\n")
    (landing / f"{hashlib.sha256(contents[40]).hexdigest()[:16]}.txt").write_text("not a label\n")
    report = watched.monitor()
    assert report.decision == "retrain"
    assert report.measured_drop == pytest.approx(0.9, abs=0.01)  # the holdout's mAP50, and none of these is found
    assert "on 40 labelled requests mAP50 is 0.900 below the holdout's" in report.reason
    (asked,) = requests(watched.world.store, "detector")
    assert len(asked.images) == 40
    assert report.started == (f"retrain-{asked.id}",)  # their labels are there already
    assert find(watched.world.store, report.release, Release).id == watched.release.id
    assert find(watched.world.store, watched.release.package, ModelPackage).id == watched.package.id
