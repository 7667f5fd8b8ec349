"""Harm: what a window has lost is told from confidence and boxes, by what they are worth to this very model."""

import hashlib

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.recipes.detection.corruptions import CORRUPTIONS, corrupt
from kfp_flywheel.components.recipes.detection.features import FEATURES
from kfp_flywheel.components.recipes.detection.harm import (
    Estimator,
    calibrate,
    confidence_drop,
    estimate,
    hurts,
    loss,
)
from kfp_flywheel.components.recipes.detection.predict import Image, PackageConfig, Predictor
from kfp_flywheel.components.recipes.detection.reference import Reference
from kfp_flywheel.components.recipes.detection.window import Window
from kfp_flywheel.components.runtime.artifacts import Blob, Sample

from tests.tiny import SIZE, tiny_model

KNOWS = Estimator(map50=0.8, confidence=2.0, boxes=0.5, error=0.03, conditions=24)
NAMES = tuple(str(number) for number in range(6))


def window_of(count: int, seed: int = 0, confidence: float = 0.7, boxes: float = 3.0, dark: float = 0.0) -> Window:
    """Requests whose boxes are sure and many to a degree; in a share `dark` of them the picture is another."""
    rng = np.random.default_rng(seed)
    numbers = rng.poisson(boxes, count)
    features = rng.standard_normal((count, len(FEATURES))).astype(np.float32)
    features[: int(dark * count), FEATURES.index("brightness")] -= 20
    total = int(numbers.sum())
    return Window(
        at=np.arange(count, dtype=np.float64),
        feature_names=np.array(FEATURES),
        features=features,
        scores=(confidence + rng.uniform(-0.2, 0.2, total)).clip(0.01, 1).astype(np.float32),
        classes=np.zeros(total, np.int64),
        boxes=np.zeros((total, 4), np.float32),
        offsets=np.cumsum([0, *numbers]),
        embeddings=np.zeros((count, 2), np.float32),
    )


def reference_of(count: int, seed: int = 99, boxes: float = 3.0) -> Reference:
    seen = window_of(count, seed, boxes=boxes)
    empty = np.array([""] * count)
    return Reference(
        empty, seen.feature_names, seen.features, seen.scores, seen.offsets, seen.class_counts(1), seen.embeddings
    )


@pytest.fixture(scope="module")
def known() -> Reference:
    return reference_of(1000)


def test_confidence_falls_relative_to_the_references(known: Reference) -> None:
    assert confidence_drop(known, window_of(500, confidence=0.63)) == pytest.approx(0.1, abs=0.01)
    assert confidence_drop(known, window_of(500, confidence=0.77)) == pytest.approx(-0.1, abs=0.01)
    assert confidence_drop(known, window_of(500, boxes=0)) == 1.0
    assert confidence_drop(known, window_of(0)) is None
    assert confidence_drop(reference_of(50, boxes=0), window_of(500)) is None


def test_doubt_and_missing_boxes_are_worth_what_the_estimator_says(known: Reference) -> None:
    doubting = estimate(KNOWS, known, window_of(2000, confidence=0.63, dark=1))
    assert doubting == pytest.approx(0.8 * (1 - 0.9**2), abs=0.02)
    missing = estimate(KNOWS, known, window_of(2000, boxes=1.5, dark=1))
    assert missing == pytest.approx(0.8 * (1 - 0.5**0.5), abs=0.03)
    assert estimate(KNOWS, known, window_of(2000, confidence=0.75, boxes=4)) == 0.0
    assert loss(KNOWS, known, window_of(100, boxes=0)) == (0.8, 0.8)


def test_fewer_boxes_in_pictures_as_before_are_no_loss(known: Reference) -> None:
    assert estimate(KNOWS, known, window_of(500, boxes=1.5)) == pytest.approx(0, abs=0.03)
    few = estimate(KNOWS, known, window_of(500, boxes=1.5, dark=0.3))
    many = estimate(KNOWS, known, window_of(500, boxes=1.5, dark=0.6))
    assert few is not None
    assert many is not None
    assert few < 0.03 < 0.15 < many


def test_what_cannot_be_known_is_not_said(known: Reference) -> None:
    assert estimate(KNOWS, known, window_of(0)) is None
    assert estimate(KNOWS, reference_of(50, boxes=0), window_of(50)) is None
    assert estimate(KNOWS.but(map50=0.0), known, window_of(50)) is None
    assert not hurts(KNOWS, known, [window_of(50, boxes=0), window_of(0)], 0.05)
    assert not hurts(KNOWS, known, [], 0.05)


def test_it_hurts_when_two_windows_in_a_row_have_lost_what_matters(known: Reference) -> None:
    clean, worse = window_of(200, 1, dark=1), window_of(200, 2, confidence=0.6, dark=1)
    blind = window_of(200, 3, boxes=0, dark=1)
    assert hurts(KNOWS, known, [worse, worse], 0.05)
    assert hurts(KNOWS, known, [worse, blind], 0.05)
    assert not hurts(KNOWS, known, [worse, clean], 0.05)
    assert not hurts(KNOWS, known, [clean, worse], 0.05)
    assert not hurts(KNOWS, known, [worse, worse], 0.3)


def test_chance_is_no_harm(known: Reference) -> None:
    pairs = [[window_of(10, 10 * seed + n) for n in range(2)] for seed in range(200)]
    assert sum(hurts(KNOWS, known, pair, 0.02) for pair in pairs) <= 4
    assert sum(all((estimate(KNOWS, known, one) or 0) >= 0.02 for one in pair) for pair in pairs) >= 15


def test_the_lower_bound_is_one_in_nineteen_cases_of_twenty() -> None:
    """Confidences of one image rise and fall together, which makes fewer of them of their number."""

    def moody(seed: int, count: int) -> Window:
        plain, rng = window_of(count, seed, dark=1), np.random.default_rng([seed, 1])
        mood = np.repeat(rng.uniform(-0.2, 0.2, count), np.diff(plain.offsets))
        return plain._replace(scores=(plain.scores + mood).astype(np.float32))

    too_high = 0
    for seed in range(400):
        seen = moody(10_000 + seed, 60)
        reference = Reference(
            np.array([""] * 60), seen.feature_names, seen.features, seen.scores, seen.offsets, seen.class_counts(1),
            seen.embeddings,
        )  # fmt: skip
        found = loss(KNOWS, reference, moody(seed, 40))
        assert found is not None
        too_high += found.at_least > 0
    assert 0.02 < too_high / 400 < 0.09


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 40), st.floats(0.05, 1), st.floats(0, 4), st.integers(0, 99), st.floats(0, 1))
def test_a_loss_is_between_nothing_and_everything(
    count: int, confidence: float, boxes: float, seed: int, dark: float
) -> None:
    found = loss(KNOWS, reference_of(30), window_of(count, seed, confidence, boxes, dark))
    if count:
        assert found is not None
        assert 0 <= found.at_least <= found.estimate <= 0.8


def labelled(predictor: Predictor, count: int, side: int = SIZE) -> list[tuple[Image, Sample]]:
    """Plain pictures, of which the model is right about every box."""
    rng, found = np.random.default_rng(5), []
    for number in range(count):
        image = np.empty((side, side, 3), np.uint8)
        image[:] = rng.integers(60, 200, 3)
        seen = predictor.predict(image)
        corners = seen.boxes.astype(np.float64) / side
        sized = np.column_stack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]])
        boxes = tuple((int(kind), *map(float, box)) for kind, box in zip(seen.classes, sized.tolist(), strict=True))
        blob = Blob(uri="", sha256=hashlib.sha256(bytes([number])).hexdigest(), size=1)
        found.append((image, Sample(path="", image=blob, width=side, height=side, boxes=boxes, split="test", group="")))  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("tiny")
    onnx.save(tiny_model(NAMES), str(folder / "model.onnx"))
    (folder / "config.json").write_bytes(PackageConfig(names=NAMES, image_size=SIZE).to_json())
    return Predictor(folder)


def test_calibration_learns_what_this_model_bears(predictor: Predictor) -> None:
    images = labelled(predictor, 30)
    found = calibrate(predictor, images)
    assert found.map50 == pytest.approx(1, abs=0.01)
    assert found.conditions == 3 * len(CORRUPTIONS)
    assert 0 < found.error < 0.3
    assert found == calibrate(predictor, images)
    assert Estimator.from_json(found.to_json(), "store") == found
    large = calibrate(predictor, labelled(predictor, 30, side=4 * SIZE))
    assert large.map50 == pytest.approx(found.map50, abs=0.01)
    assert large.confidence == pytest.approx(found.confidence, rel=0.3)


def test_images_without_labels_calibrate_nothing(predictor: Predictor, known: Reference) -> None:
    images = [(image, sample.but(boxes=())) for image, sample in labelled(predictor, 5)]
    assert estimate(calibrate(predictor, images), known, window_of(50)) is None


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(160, 160), (1, 1), (37, 400)])
def test_a_corruption_is_seeded_and_grows_and_keeps_the_shape(name: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    coarse = rng.integers(40, 200, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3)).astype(np.uint8)
    image = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    before = image.copy()
    changed = [corrupt(image, name, strength, seed=1) for strength in range(3)]
    assert (image == before).all()
    assert all(made.shape == image.shape and made.dtype == np.uint8 for made in changed)
    assert (corrupt(image, name, 2, seed=1) == changed[2]).all()
    if shape == (160, 160):
        distances = [float(np.abs(made.astype(int) - image).mean()) for made in changed]
        assert 0 < distances[0] < distances[1] < distances[2]
