"""What train reads: data as a YOLO folder, architectures by name, checkpoints that are whole or passed over."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.recipes.detection import architectures, checkpoints
from kfp_flywheel.components.recipes.detection.data import cache_mode, label_lines, materialize, samples_of
from kfp_flywheel.components.runtime.artifacts import Blob, Box, Epoch, Sample
from kfp_flywheel.components.runtime.errors import Corrupt, UserError
from kfp_flywheel.components.runtime.wiring import World

from tests.training import dataset_of

fraction = st.floats(0, 1)


def test_the_folder_holds_the_images_and_boxes_of_training_and_validation(
    world: World, digits: Path, tmp_path: Path
) -> None:
    version = dataset_of(world.store, digits)
    document = yaml.safe_load(materialize(world.store, version, tmp_path / "data").read_text())

    assert document["names"] == dict(enumerate(version.names))
    for split in ("train", "val"):
        images = sorted(Path(document["path"], document[split]).iterdir())
        expected = [sample for sample in samples_of(world.store, version) if sample.split == split]
        assert len(images) == version.counts[split] == len(expected)
        for image, sample in zip(images, expected, strict=True):
            assert image.read_bytes() == world.store.get(sample.image.uri)
            rows = (tmp_path / "data" / "labels" / split / f"{image.stem}.txt").read_text().splitlines()
            assert [tuple(map(float, row.split())) for row in rows] == list(sample.boxes)
    assert not (tmp_path / "data" / "images" / "test").exists(), "the holdout has no place near training"


def test_a_damaged_image_is_not_trained_on(world: World, digits: Path, tmp_path: Path) -> None:
    version = dataset_of(world.store, digits)
    stored = Path(samples_of(world.store, version)[0].image.uri.removeprefix("file://"))
    stored.chmod(0o644)
    stored.write_bytes(b"something else")

    with pytest.raises(Corrupt):
        materialize(world.store, version, tmp_path / "data")


@given(st.lists(st.tuples(st.integers(0, 99), fraction, fraction, fraction, fraction)))
def test_no_digit_of_a_box_is_lost(boxes: list[Box]) -> None:
    rows = [line.split() for line in label_lines(boxes).splitlines()]
    assert [(int(c), *map(float, rest)) for c, *rest in rows] == boxes


@pytest.mark.parametrize(("budget", "mode"), [(3 * 640 * 480 * 10, "ram"), (3 * 640 * 480 * 10 - 1, False)])
def test_images_are_kept_in_memory_if_they_fit(budget: int, mode: str | bool) -> None:
    blob = Blob(uri="file:///x", sha256="", size=0)
    sample = Sample(path="a.jpg", image=blob, width=1280, height=960, boxes=(), split="train", group="a")
    assert cache_mode([sample] * 10, 640, budget) == mode


@pytest.mark.parametrize("name", ["narrow", "yolo11n", "yolov8s", "yolov8n-p2"])
def test_known_architectures_are_found(name: str) -> None:
    assert architectures.find(name).stem == name


@pytest.mark.parametrize(
    "name", ["yolo11", "yolo11n-seg", "yolo26n", "rtdetr-l", "yolo12", "../narrow", "", "yolo11n.pt"]
)
def test_an_architecture_that_cannot_be_packaged_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="architecture is") as refused:
        architectures.find(name)
    assert "choose one" in refused.value.next


def test_the_newest_whole_checkpoint_is_found(world: World) -> None:
    torch = pytest.importorskip("torch")
    said: list[str] = []
    mine = checkpoints.Checkpoints(world.store, "training/x/checkpoints/", 3, said.append)
    assert mine.newest() is None
    curve = tuple(Epoch(epoch=number, seconds=1.0, metrics={"map50": 0.1}) for number in (1, 2, 3))
    for epoch in (1, 2):
        mine.save(epoch, {"epoch": epoch, "model": {"w": torch.full((3,), float(epoch))}}, curve[:epoch])
    # What a kill between two writes leaves: bytes without a manifest.
    world.store.put("training/x/checkpoints/00003-half.pt", b"half")

    state, so_far = mine.newest() or pytest.fail("none")
    assert (state["epoch"], so_far) == (2, curve[:2])

    damaged = Path(checkpoints.saved(world.store, "training/x/checkpoints/")[-1].blob.uri.removeprefix("file://"))
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    state, so_far = mine.newest() or pytest.fail("none")
    assert (state["epoch"], so_far) == (1, curve[:1])
    assert "epoch 2 is damaged" in said[-1]


def test_checkpoints_do_not_fill_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(checkpoints, "BUDGET", 200_000)
    mine = checkpoints.Checkpoints(world.store, "training/y/checkpoints/", 100, print)
    for epoch in range(1, 101):
        if mine.is_due(epoch):
            mine.save(epoch, {"epoch": epoch, "model": {"w": torch.full((2500,), float(epoch))}}, ())
    found = checkpoints.saved(world.store, "training/y/checkpoints/")
    assert [found[0].epoch, found[-1].epoch] == [1, 100]
    assert sum(saved.blob.size for saved in found) < 1.2 * 200_000
