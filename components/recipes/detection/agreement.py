"""How far one image's detections are those of another model, or its labels: F1, the same from both sides.

F1 is the harmonic mean of precision and recall: 2 · pairs / (boxes of one + boxes of the other). As many pairs as can
be are made, each box in one of them at most: giving each box in turn the one that it covers best, as average precision
does it, would depend on whose turn is first.
"""

import numpy as np
import numpy.typing as npt

from ...runtime.artifacts import Sample
from .evaluate import Corners, corners, overlaps
from .predict import Detections, Ints

IOU = 0.5
"""Overlap from which on two boxes of one class are on the same object."""


def agreement(a: Detections, b: Detections) -> float | None:
    """F1 between what two models see in one image, both at the confidence that they serve with.

    Returns:
        0 to 1; None if neither sees anything.
    """
    return _f1(a.boxes, a.classes, b.boxes, b.classes)


def accuracy(found: Detections, sample: Sample) -> float | None:
    """F1 between what a model sees in an image and its labels.

    Args:
        found: At the confidence of serving, with the class ids of the labels.

    Returns:
        0 to 1; None if nothing is labelled and nothing is seen.
    """
    kinds = np.array([box[0] for box in sample.boxes], dtype=np.int64)
    return _f1(found.boxes, found.classes, corners(sample), kinds)


def _f1(boxes: Corners, classes: Ints, others: Corners, kinds: Ints) -> float | None:
    if not len(boxes) + len(others):
        return None
    return 2 * _pairs((overlaps(boxes, others) >= IOU) & (classes[:, None] == kinds)) / (len(boxes) + len(others))


def _pairs(meets: npt.NDArray[np.bool_]) -> int:
    """The greatest number of pairs (row, column) that meet, none of them in two pairs."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not meets.any():
        return 0
    return int(np.count_nonzero(maximum_bipartite_matching(csr_array(meets)) >= 0))
