"""Drift features: defined for every image and every number of boxes, and each moves with what it is named after."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.recipes.detection.features import (
    FEATURES,
    IMAGE_FEATURES,
    PREDICTION_FEATURES,
    features,
)
from kfp_flywheel.components.recipes.detection.predict import Detections, Image


def seen(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Rows of x0, y0, x1, y1, score, class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), np.zeros(4, np.float32))


@pytest.fixture(scope="module")
def photograph() -> Image:
    rng = np.random.default_rng(3)
    coarse = rng.integers(40, 200, (60, 80, 3)).astype(np.uint8)
    return cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def test_features_of_a_plain_image_are_known_numbers() -> None:
    image = np.empty((50, 100, 3), np.uint8)
    image[...] = (10, 20, 40)  # blue, green, red
    found = features(image, seen())
    assert tuple(found) == FEATURES
    assert (found["blue"], found["green"], found["red"]) == (10, 20, 40)
    assert found["brightness"] == round(0.114 * 10 + 0.587 * 20 + 0.299 * 40)
    assert found["saturation"] == 0.75
    assert [found[name] for name in ("contrast", "sharpness", "noise", "entropy")] == [0, 0, 0, 0]
    assert found["megapixels"] == 0.005
    assert found["log_aspect"] == pytest.approx(math.log(2))


def test_features_of_boxes_are_known_numbers() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    found = features(image, seen((0, 0, 40, 20, 0.9, 3), (160, 60, 180, 100, 0.5, 3)))
    expected = {
        "boxes": 2,
        "classes": 1,
        "confidence_mean": 0.7,
        "confidence_min": 0.5,
        "confidence_max": 0.9,
        "confidence_std": 0.2,
        "box_area": 800 / 20_000,
        "box_log_aspect": 0,
        "box_x": (20 / 200 + 170 / 200) / 2,
        "box_y": (10 / 100 + 80 / 100) / 2,
        "box_spread": math.hypot(0.375, 0.35),
    }
    assert {name: found[name] for name in PREDICTION_FEATURES} == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_a_box_there_is_nothing_to_say_about_boxes(photograph: Image) -> None:
    found = features(photograph, seen())
    assert (found["boxes"], found["classes"]) == (0, 0)
    assert all(math.isnan(found[name]) for name in PREDICTION_FEATURES[2:])
    assert all(math.isfinite(found[name]) for name in IMAGE_FEATURES)


def test_one_box_has_no_spread_and_an_empty_one_a_shape(photograph: Image) -> None:
    found = features(photograph, seen((320, 10, 320, 60, 0.4, 0)))
    assert (found["confidence_std"], found["box_spread"], found["box_area"]) == (0, 0, 0)
    assert found["box_log_aspect"] == pytest.approx(-math.log(50))


@settings(deadline=None)
@given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    fill=st.sampled_from([0, 255, None]),
    count=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_every_value_is_finite_for_every_image_with_boxes(
    height: int, width: int, fill: int | None, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = (
        rng.integers(0, 256, (height, width, 3), np.uint8)
        if fill is None
        else np.full((height, width, 3), fill, np.uint8)
    )
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1).reshape(count, 4) * [width, height, width, height]
    found = features(image, seen(*[(*map(float, box), 0.5, 1) for box in corners]))
    for name in FEATURES if count else IMAGE_FEATURES:
        assert math.isfinite(found[name]), name
    assert 0 <= found["entropy"] <= 8
    assert 0 <= found["saturation"] <= 1
    assert found["sharpness"] >= -1e-6


def test_noise_is_estimated_in_grey_levels() -> None:
    rng = np.random.default_rng(0)
    for deviation in (2, 5, 20):
        grey = np.clip(rng.normal(128, deviation, (300, 400, 1)).round(), 0, 255).astype(np.uint8)
        assert features(np.repeat(grey, 3, 2), seen())["noise"] == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize(
    ("name", "change", "direction"),
    [
        ("brightness", lambda image: cv2.convertScaleAbs(image, alpha=1, beta=30), 1),
        ("contrast", lambda image: cv2.convertScaleAbs(image, alpha=0.5, beta=60), -1),
        ("sharpness", lambda image: cv2.GaussianBlur(image, (0, 0), 3), -1),
        ("noise", lambda image: cv2.add(image, np.random.default_rng(1).integers(0, 30, image.shape, np.uint8)), 1),
        ("saturation", lambda image: np.repeat(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None], 3, 2), -1),
        ("entropy", lambda image: image // 64 * 64, -1),
        ("red", lambda image: cv2.add(image, (0, 0, 25, 0)), 1),
        ("blue", lambda image: cv2.add(image, (25, 0, 0, 0)), 1),
        ("megapixels", lambda image: cv2.resize(image, None, fx=2, fy=2), 1),
        ("log_aspect", lambda image: image[:100], 1),
    ],
)
def test_a_corruption_moves_the_feature_that_is_named_after_it(
    photograph: Image, name: str, change: object, direction: int
) -> None:
    assert callable(change)
    before, after = features(photograph, seen())[name], features(change(photograph), seen())[name]
    assert (after - before) * direction > 0.05 * abs(before)


def test_large_images_are_thinned_out_without_losing_their_noise() -> None:
    rng = np.random.default_rng(0)
    grey = np.clip(rng.normal(128, 10, (1500, 2000, 1)).round(), 0, 255).astype(np.uint8)
    found = features(np.repeat(grey, 3, 2), seen())
    assert found["noise"] == pytest.approx(10, rel=0.05)
    assert found["contrast"] == pytest.approx(10, rel=0.05)
    assert found["megapixels"] == 3
