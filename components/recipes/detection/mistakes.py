"""Where a detector is wrong at the confidence that it serves with: what a person should look at first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...runtime.artifacts import Sample
from .evaluate import corners, pair
from .predict import Detections


@dataclass(frozen=True)
class Mistakes:
    """What is wrong in one image.

    Args:
        image: Its position among the samples.
        cost: 1 for each missed box, and the score of each wrong detection: the surer, the worse.
        missed: Class ids of labelled boxes that nothing found.
        taken: Confusions: class id of the label, class id of the detection, its score.
        false_alarms: Detections where no free label is: class id, score.
        right: Positions of the detections that are right.
    """

    image: int
    cost: float
    missed: tuple[int, ...]
    taken: tuple[tuple[int, int, float], ...]
    false_alarms: tuple[tuple[int, float], ...]
    right: frozenset[int]


def above(prediction: Detections, conf: float) -> Detections:
    """The detections that serving would give: suppression keeps the better box, so weaker ones never change them."""
    sure = prediction.scores > conf
    return Detections(prediction.boxes[sure], prediction.scores[sure], prediction.classes[sure], prediction.embedding)


def worst(predictions: Sequence[Detections], samples: Sequence[Sample], limit: int, iou: float = 0.5) -> list[Mistakes]:
    """The images with the most costly mistakes.

    Args:
        predictions: One an image, at the confidence of serving.
        samples: The images' labels, in the same order.
        limit: Images at most; those without a mistake are never among them.
        iou: Overlap from which on a detection is on a labelled object.
    """
    found = [_judge(number, *both, iou) for number, both in enumerate(zip(predictions, samples, strict=True))]
    wrong = [mistakes for mistakes in found if mistakes.cost > 0]
    return sorted(wrong, key=lambda mistakes: (-mistakes.cost, mistakes.image))[:limit]


def _judge(number: int, prediction: Detections, sample: Sample, iou: float) -> Mistakes:
    truth, kinds = corners(sample), np.array([box[0] for box in sample.boxes], dtype=np.int64)
    order = np.argsort(-prediction.scores, kind="stable")
    boxes, scores, classes = prediction.boxes[order], prediction.scores[order], prediction.classes[order]
    owner = np.full(len(boxes), -1)
    for kind in np.unique(classes):
        mine, labels = np.flatnonzero(classes == kind), np.flatnonzero(kinds == kind)
        local = pair(boxes[mine], truth[labels], iou)
        owner[mine[local >= 0]] = labels[local[local >= 0]]
    # What is left over on both sides is paired whatever its class: those are confusions.
    free, wrong = np.setdiff1d(np.arange(len(kinds)), owner), np.flatnonzero(owner < 0)
    local = pair(boxes[wrong], truth[free], iou)
    taken = [
        (int(kinds[free[at]]), int(classes[row]), float(scores[row]))
        for row, at in zip(wrong, local, strict=True)
        if at >= 0
    ]
    alarms = [(int(classes[row]), float(scores[row])) for row, at in zip(wrong, local, strict=True) if at < 0]
    missed = np.delete(kinds[free], local[local >= 0])
    cost = len(missed) + len(taken) + sum(score for *_, score in taken) + sum(score for _, score in alarms)
    right = frozenset(order[owner >= 0].tolist())
    return Mistakes(number, cost, tuple(missed.tolist()), tuple(taken), tuple(alarms), right)
