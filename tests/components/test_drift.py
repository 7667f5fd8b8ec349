"""Drift: windows like the holdout are quiet, whatever a reference's size; changes are found, and named."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.recipes.detection import reference
from kfp_flywheel.components.recipes.detection.drift import compare
from kfp_flywheel.components.recipes.detection.features import FEATURES, IMAGE_FEATURES
from kfp_flywheel.components.recipes.detection.reference import Reference
from kfp_flywheel.components.recipes.detection.window import Picture, Window
from kfp_flywheel.components.runtime.artifacts import Drift
from kfp_flywheel.components.runtime.errors import Corrupt, DataError, PlatformError, UserError
from scipy.stats import binom

CLASSES, WIDTH = 5, 24
OURS = "ks+mmd"


def window_of(count: int, seed: int, classes: tuple[int, ...] = (0, 1, 2, 3, 4), boxes: float = 2.0) -> Window:
    """Requests of a world with one hidden cause, so that features and embeddings depend on one another."""
    rng = np.random.default_rng(seed)
    cause = rng.standard_normal((count, 3))
    numbers = rng.poisson(boxes, count)
    total = int(numbers.sum())
    drawn = cause @ np.random.default_rng(0).standard_normal((3, len(FEATURES))) + rng.standard_normal(
        (count, len(FEATURES))
    )
    drawn[:, FEATURES.index("boxes")] = numbers
    drawn[numbers == 0, FEATURES.index("confidence_mean") :] = np.nan
    return Window(
        at=np.arange(count, dtype=np.float64),
        feature_names=np.array(FEATURES),
        features=drawn.astype(np.float32),
        scores=rng.uniform(0.25, 1, total).astype(np.float32),
        classes=rng.choice(classes, total),
        boxes=rng.uniform(0, 100, (total, 4)).astype(np.float32),
        offsets=np.cumsum([0, *numbers]),
        embeddings=(cause @ np.random.default_rng(1).standard_normal((3, WIDTH))).astype(np.float32)
        + rng.standard_normal((count, WIDTH), np.float32),
    )


def reference_of(count: int, seed: int) -> Reference:
    seen = window_of(count, seed)
    return Reference(
        samples=np.arange(count).astype(str),
        feature_names=seen.feature_names,
        features=seen.features,
        scores=seen.scores,
        offsets=seen.offsets,
        class_counts=seen.class_counts(CLASSES),
        embeddings=seen.embeddings,
    )


@pytest.fixture(scope="module")
def known() -> Reference:
    return reference_of(400, 1)


def changed(tests: tuple[Drift, ...]) -> set[tuple[str, str]]:
    return {(test.name, test.test) for test in tests if test.drifted}


def test_a_window_like_the_holdout_is_quiet_and_all_tests_are_told(known: Reference) -> None:
    tests = compare(known, window_of(200, 2), 0.01, OURS)
    names = [(test.name, test.test) for test in tests]
    assert names == [*((name, "ks") for name in FEATURES), ("class mix", "chi2"), ("embedding", "mmd")]
    assert not changed(tests)
    assert all(0 <= test.p_value <= 1 for test in tests)


@pytest.mark.parametrize(("images", "requests"), [(30, 100), (200, 60)])
def test_references_of_any_size_ring_as_seldom_as_they_should(images: int, requests: int) -> None:
    alpha = 0.05
    rung = [
        bool(changed(compare(reference_of(images, 10_000 + n), window_of(requests, 20_000 + n), alpha, OURS)))
        for n in range(300)
    ]
    assert sum(rung) <= binom.ppf(1 - 1e-4, len(rung), alpha / 10)


def test_a_small_reference_does_not_ring_again_and_again() -> None:
    rates = []
    for seed in range(20):
        known = reference_of(40, 7000 + seed)
        windows = (window_of(100, 5000 + 20 * seed + n) for n in range(20))
        rates.append(np.mean([bool(changed(compare(known, window, 0.05, OURS))) for window in windows]))
    assert np.mean(np.array(rates) > 0.05) <= 0.1


@pytest.mark.parametrize("name", ["brightness", "noise", "confidence_mean", "box_area"])
def test_a_feature_that_moves_is_named(known: Reference, name: str) -> None:
    now = window_of(100, 3)
    now.features[:, FEATURES.index(name)] += 3
    assert changed(compare(known, now, 0.01, OURS)) == {(name, "ks")}


def test_what_is_new_in_front_of_the_camera_shows_in_the_embedding(known: Reference) -> None:
    now = window_of(100, 3)
    now.embeddings[:] += np.random.default_rng(5).normal(0, 0.8, (1, WIDTH))
    assert changed(compare(known, now, 0.01, OURS)) == {("embedding", "mmd")}


def test_classes_that_no_longer_come_show_in_the_mix(known: Reference) -> None:
    assert changed(compare(known, window_of(100, 3, classes=(0, 1)), 0.01, OURS)) == {("class mix", "chi2")}


def test_boxes_that_vanish_do_not_pass_silently(known: Reference) -> None:
    blind = window_of(60, 3, boxes=0)
    assert np.isnan(blind.features[:, len(IMAGE_FEATURES) + 2 :]).all()
    found = changed(compare(known, blind, 0.01, OURS))
    assert {("boxes", "ks"), ("confidence_mean", "ks"), ("box_x", "ks")} <= found
    never = reference_of(400, 1)._replace(
        features=window_of(400, 1, boxes=0).features, class_counts=np.zeros((400, CLASSES), np.int64)
    )
    assert not changed(compare(never, blind, 0.01, OURS))
    assert ("boxes", "ks") in changed(compare(never, window_of(60, 3), 0.01, OURS))


def test_small_windows_are_judged_and_stay_quiet(known: Reference) -> None:
    for count in (1, 2, 5):
        assert not changed(compare(known, window_of(count, 9), 0.01, OURS))


def test_the_same_window_gets_the_same_numbers(known: Reference) -> None:
    now = window_of(50, 4)
    assert compare(known, now, 0.01, OURS) == compare(known, now, 0.01, OURS)


def test_what_cannot_be_compared_is_an_error(known: Reference) -> None:
    now = window_of(50, 4)
    with pytest.raises(DataError, match="0 requests cannot be compared with 400 images"):
        compare(known, now.part(0, 0), 0.01, OURS)
    with pytest.raises(DataError, match="compared with 0 images"):
        compare(known._replace(samples=known.samples[:0]), now, 0.01, OURS)
    with pytest.raises(PlatformError, match="24 values of embedding, the window 22 features and 23"):
        compare(known, now._replace(embeddings=now.embeddings[:, :23]), 0.01, OURS)
    with pytest.raises(PlatformError, match="or other ones"):
        compare(known, now._replace(feature_names=now.feature_names[::-1]), 0.01, OURS)
    with pytest.raises(UserError, match="gut feeling is not a detector"):
        compare(known, now, 0.01, "gut feeling")


def test_alibis_detectors_stand_behind_the_same_function(known: Reference) -> None:
    pytest.importorskip("alibi_detect")
    quiet, dark, new = window_of(80, 3), window_of(80, 3, boxes=0), window_of(80, 3)
    dark.features[:, FEATURES.index("brightness")] += 3
    new.embeddings[:] += np.random.default_rng(5).normal(0, 0.8, (1, WIDTH))
    assert not changed(compare(known, quiet, 0.01, "alibi-ks"))
    assert {("brightness", "ks"), ("box_x", "ks")} <= changed(compare(known, dark, 0.01, "alibi-ks"))
    assert not changed(compare(known, quiet, 0.01, "alibi-mmd"))
    assert changed(compare(known, new, 0.01, "alibi-mmd")) == {("embedding", "mmd")}


@pytest.mark.parametrize(("detector", "missing"), [("alibi-ks", "alibi_detect"), ("alibi-mmd", "torch")])
def test_what_is_not_installed_is_named(
    known: Reference, monkeypatch: pytest.MonkeyPatch, detector: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "alibi_detect":
        monkeypatch.setitem(sys.modules, "alibi_detect.cd", None)
    with pytest.raises(UserError, match=rf"need {missing}.*, which is not installed.*kfp-flywheel\[monitor\]"):
        compare(known, window_of(20, 3), 0.01, detector)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(-35, 35), st.integers(-35, 35), st.booleans())
def test_parts_of_a_window_are_its_requests(count: int, start: int, stop: int, pictured: bool) -> None:
    whole = window_of(count, 7)
    if pictured:
        whole = whole._replace(pictures=tuple(Picture("u", str(number), number, 1) for number in range(count)))
    part, mine = whole.part(start, stop), range(count)[start:stop]
    assert part.requests == len(mine)
    assert part.at.tolist() == list(mine)
    assert [picture.offset for picture in part.pictures] == (list(mine) if pictured else [])
    assert part.offsets[0] == 0
    assert part.offsets[-1] == len(part.scores) == len(part.classes) == len(part.boxes)
    counts = whole.class_counts(CLASSES)
    assert (part.class_counts(CLASSES) == counts[start:stop]).all()
    assert (counts.sum(1) == np.diff(whole.offsets)).all()


def test_a_reference_is_read_as_it_was_written(known: Reference, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **known._asdict())
    for name, array in reference.read(tmp_path / "reference.npz")._asdict().items():
        np.testing.assert_array_equal(array, getattr(known, name))


def test_a_reference_that_is_not_whole_is_refused_in_a_sentence(known: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    with pytest.raises(Corrupt, match=r"reference\.npz does not hold the reference of a package: .*No such file"):
        reference.read(path)
    arrays = known._asdict()
    np.savez(path, **arrays)
    good = path.read_bytes()
    for torn in (b"", b"nothing of the kind", good[: len(good) // 2], good[:-50]):
        path.write_bytes(torn)
        with pytest.raises(Corrupt, match="does not hold the reference"):
            reference.read(path)
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            reference.read(path)
        except Corrupt:
            continue
    np.savez(path, **{name: array for name, array in arrays.items() if name != "embeddings"})
    with pytest.raises(Corrupt, match="embeddings"):
        reference.read(path)
    np.savez(path, **(arrays | {"embeddings": known.embeddings[:-1]}))
    with pytest.raises(Corrupt, match="do not belong together"):
        reference.read(path)
    np.savez(path, **(arrays | {"samples": np.array([{"a": "pickle"}], dtype=object)}))
    with pytest.raises(Corrupt, match="does not hold the reference"):
        reference.read(path)
