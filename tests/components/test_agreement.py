"""Agreement of two detectors on an image: F1 with as many pairs as can be."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.recipes.detection.agreement import accuracy, agreement
from kfp_flywheel.components.recipes.detection.evaluate import overlaps
from kfp_flywheel.components.recipes.detection.predict import Detections
from kfp_flywheel.components.runtime.artifacts import Blob, Sample

SIDE = 100


def seen(rows: list[tuple[int, float, float, float, float]]) -> Detections:
    """Each row: class, x0, y0, width, height in pixels; the scores fall."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    boxes = np.concatenate([table[:, 1:3], table[:, 1:3] + table[:, 3:]], axis=1)
    scores = np.linspace(0.9, 0.3, len(table), dtype=np.float32)
    return Detections(boxes, scores, table[:, 0].astype(np.int64), np.zeros(1, np.float32))


def labelled(found: Detections, side: int = SIDE) -> Sample:
    """Labels that say what was seen."""
    boxes = tuple(
        (int(kind), float(x0 + x1) / 2 / side, float(y0 + y1) / 2 / side, float(x1 - x0) / side, float(y1 - y0) / side)
        for kind, (x0, y0, x1, y1) in zip(found.classes, found.boxes, strict=True)
    )
    blob = Blob(uri="", sha256="", size=0)
    return Sample(path="x", image=blob, width=side, height=side, boxes=boxes, split=None, group="")


# Few places, so that boxes of both sides often meet, and meet several.
BOXES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0, 4, 8, 40]), st.sampled_from([0, 5]), st.just(20), st.just(20)),
    max_size=5,
).map(seen)


def most_pairs(a: Detections, b: Detections) -> int:
    """By trying all."""
    meets = (overlaps(a.boxes, b.boxes) >= 0.5) & (a.classes[:, None] == b.classes)
    meets = meets if len(a) <= len(b) else meets.T
    orders = permutations(range(meets.shape[1]), meets.shape[0])
    return max((sum(meets[row, column] for row, column in enumerate(order)) for order in orders), default=0)


@settings(deadline=None)
@given(BOXES, BOXES)
def test_it_is_f1_of_the_most_pairs_from_either_side(a: Detections, b: Detections) -> None:
    expected = 2 * most_pairs(a, b) / (len(a) + len(b)) if len(a) + len(b) else None
    assert agreement(a, b) == agreement(b, a) == expected
    assert accuracy(a, labelled(b)) == pytest.approx(expected)


@settings(deadline=None)
@given(BOXES, st.randoms(use_true_random=False))
def test_the_same_boxes_agree_in_any_order(found: Detections, random: object) -> None:
    order = list(range(len(found)))
    random.shuffle(order)  # type: ignore[attr-defined]
    other = Detections(found.boxes[order], found.scores, found.classes[order], found.embedding)
    assert agreement(found, other) == (1 if len(found) else None)


def test_a_case_done_by_hand() -> None:
    """One of three is found, one has the wrong class, one is elsewhere, and there is a false alarm."""
    labels = labelled(seen([(0, 0, 0, 20, 20), (1, 40, 40, 20, 20), (0, 70, 70, 20, 20)]))
    found = seen([(0, 2, 0, 20, 20), (0, 40, 40, 20, 20), (0, 70, 50, 20, 20), (1, 0, 70, 20, 20)])
    assert accuracy(found, labels) == pytest.approx(2 * 1 / (4 + 3))


def test_nobody_sees_anything_is_no_agreement_and_one_alone_is_none_at_all() -> None:
    nothing, something = seen([]), seen([(0, 0, 0, 20, 20)])
    assert agreement(nothing, nothing) is None
    assert accuracy(nothing, labelled(nothing)) is None
    assert agreement(something, nothing) == agreement(nothing, something) == 0
    assert accuracy(nothing, labelled(something)) == accuracy(something, labelled(nothing)) == 0


def test_labels_are_fractions_of_the_image() -> None:
    found = seen([(0, 0, 0, 20, 20)])
    assert accuracy(found, labelled(found)) == 1
    assert accuracy(found, labelled(found).but(width=300)) == 0
