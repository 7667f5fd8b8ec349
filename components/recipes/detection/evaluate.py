"""Accuracy of detections on labelled images: COCO's average precision, and a form of it that is quick to resample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runtime.artifacts import Sample
from .predict import Detections

Floats = npt.NDArray[np.float64]
Corners = npt.NDArray[np.float32] | npt.NDArray[np.float64]

MAX_DETECTIONS = 100
"""An image's best detections of one class that count (COCO's maxDets)."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""The recalls at which COCO reads the precision."""


@dataclass(frozen=True)
class Accuracy:
    """COCO's figures; None where there is nothing to measure (a class without a labelled box, no box at all).

    Args:
        map50: Mean over classes of the average precision at IoU 0.5.
        map: The same, averaged over IoU 0.5, 0.55 … 0.95.
        class_map50: Average precision at IoU 0.5 of each class, by name.
    """

    map50: float | None
    map: float | None
    class_map50: dict[str, float | None]


@dataclass(frozen=True)
class Matches:
    """Detections of one class over all images, in descending order of their scores.

    Args:
        image: Index of the image, shape (detections,).
        hit: Whether the detection found a labelled box of its class, shape (detections,).
        positives: Labelled boxes of the class in each image, shape (images,).
    """

    image: npt.NDArray[np.int64]
    hit: npt.NDArray[np.bool_]
    positives: npt.NDArray[np.int64]


def score(predictions: Sequence[Detections], samples: Sequence[Sample], names: Sequence[str]) -> Accuracy:
    """Score detections with faster-coco-eval: all box sizes, at most 100 detections of a class an image.

    Args:
        predictions: One an image, made at a confidence near zero (a threshold cuts off the tail of the curve).
        samples: The images' labels, in the same order.
        names: Class names by id.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    # The library warns about ids of 0 and refuses an empty list of results.
    labels = [
        (number, box[0], _sized(placed))
        for number, sample in enumerate(samples, 1)
        for box, placed in zip(sample.boxes, corners(sample), strict=True)
    ]
    results = [
        {"image_id": number, "category_id": int(kind) + 1, "bbox": _sized(box), "score": float(confidence)}
        for number, prediction in enumerate(predictions, 1)
        for box, confidence, kind in zip(prediction.boxes, prediction.scores, prediction.classes, strict=True)
    ]
    present = sorted({kind for _, kind, _ in labels})
    if not labels or not results:
        nothing = None if not labels else 0.0
        return Accuracy(nothing, nothing, {name: 0.0 if n in present else None for n, name in enumerate(names)})
    truth = COCO(
        {
            "images": [{"id": n, "width": s.width, "height": s.height} for n, s in enumerate(samples, 1)],
            "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
            "annotations": [
                {"id": n, "image_id": at, "category_id": kind + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for n, (at, kind, box) in enumerate(labels, 1)
            ],
        }
    )
    judge = COCOeval_faster(truth, truth.loadRes(results), "bbox")
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.params.maxDets = [MAX_DETECTIONS]
    judge.evaluate()
    judge.accumulate()
    # Axes: IoU thresholds from 0.5 on, recalls, classes, areas, limits of detections; -1 where a class has no box.
    average: Floats = judge.eval["precision"][:, :, present, 0, 0].mean(axis=1)
    by_class = dict(zip(present, average[0].tolist(), strict=True))
    return Accuracy(
        float(average[0].mean()), float(average.mean()), {name: by_class.get(n) for n, name in enumerate(names)}
    )


def match(
    predictions: Sequence[Detections], samples: Sequence[Sample], classes: int, iou: float = 0.5
) -> list[Matches]:
    """Match detections to labels once, as COCO does: the surest first, each to the free box that it covers best.

    Resampling images afterwards needs no further matching, since boxes of two images never meet.

    Returns:
        One entry for each class.
    """
    matched: list[Matches] = []
    truth = [corners(sample) for sample in samples]
    kinds = [np.array([box[0] for box in sample.boxes], dtype=np.int64) for sample in samples]
    for kind in range(classes):
        images, scores, hits = [], [], []
        for number, prediction in enumerate(predictions):
            mine = np.flatnonzero(prediction.classes == kind)
            best = mine[np.argsort(-prediction.scores[mine], kind="stable")][:MAX_DETECTIONS]
            hits.append(pair(prediction.boxes[best], truth[number][kinds[number] == kind], iou) >= 0)
            scores.append(prediction.scores[best].astype(np.float64))
            images.append(np.full(len(best), number, dtype=np.int64))
        order = np.argsort(-np.concatenate(scores or [np.zeros(0)]), kind="stable")
        matched.append(
            Matches(
                image=np.concatenate(images or [np.zeros(0, np.int64)])[order],
                hit=np.concatenate(hits or [np.zeros(0, np.bool_)])[order],
                positives=np.array([np.count_nonzero(owned == kind) for owned in kinds], dtype=np.int64),
            )
        )
    return matched


def pair(found: Corners, truth: Floats, iou: float) -> npt.NDArray[np.int64]:
    """Give each box, the surest first, the free labelled box that it covers best; -1 if none reaches the IoU.

    Args:
        found: Corners of the detections, shape (detections, 4), in descending order of their scores.
        truth: Corners of the labels, shape (labels, 4).
    """
    overlap = overlaps(found, truth)
    owner = np.full(len(found), -1, dtype=np.int64)
    for row in range(len(found) if len(truth) else 0):
        best = int(np.argmax(overlap[row]))
        if overlap[row, best] >= iou:
            owner[row] = best
            overlap[:, best] = -1.0
    return owner


def overlaps(a: Corners, b: Corners) -> Floats:
    """Intersection over union of every box of a with every box of b, shape (len(a), len(b)); boxes are corners."""
    first, second = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    total = (first[..., 2:] - first[..., :2]).prod(axis=-1) + (second[..., 2:] - second[..., :2]).prod(axis=-1) - shared
    share: Floats = np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)
    return share


def map50(matches: Sequence[Matches], counts: npt.NDArray[np.int64]) -> Floats:
    """COCO's mAP50 when image i is there `counts[:, i]` times: for resampling, and for leaving images out.

    The precision is read at 101 recalls after it was made to fall monotonically. Only hits can raise it, so the curve
    is kept at the hits alone; the misses between them enter by their number.

    Args:
        matches: One entry a class, for the classes to be averaged over.
        counts: How often each image is there, shape (resamples, images).

    Returns:
        One value a resample, shape (resamples,); NaN where no image with a box is left.
    """
    total = np.zeros(len(counts))
    present = np.zeros(len(counts))
    rows = np.ascontiguousarray(counts.T, dtype=np.int32)
    for entry in matches:
        positives = entry.positives @ rows
        total += _average_precision(entry, rows, positives)
        present += positives > 0
    return np.divide(total, present, out=np.full(len(counts), np.nan), where=present > 0)


def _average_precision(entry: Matches, rows: npt.NDArray[np.int32], positives: npt.NDArray[np.int64]) -> Floats:
    """Average precision of one class; `rows` has shape (images, resamples). Gives (resamples,), 0 without positives."""
    at = np.flatnonzero(entry.hit)
    if not len(at):
        return np.zeros(rows.shape[1])
    starts = np.concatenate([[0], at[:-1] + 1])
    seen = np.add.reduceat(rows[entry.image[: at[-1] + 1]], starts, axis=0).cumsum(axis=0)
    hits = rows[entry.image[at]].cumsum(axis=0)
    precision = hits / np.maximum(seen, 1)
    falling = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    # Recall 0 is read at the first detection, wherever that is: the falling curve is the same up to the first hit.
    reached = np.searchsorted(RECALLS, hits / np.maximum(positives, 1), side="right")
    read = np.diff(reached, axis=0, prepend=0)
    value: Floats = (falling * read).sum(axis=0) / len(RECALLS)
    return np.where(positives > 0, value, 0.0)


def corners(sample: Sample) -> Floats:
    """Corners x0, y0, x1, y1 of an image's labels in pixels, shape (boxes, 4)."""
    boxes = np.array([box[1:] for box in sample.boxes], dtype=np.float64).reshape(-1, 4)
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    size = np.array([sample.width, sample.height] * 2, dtype=np.float64)
    placed: Floats = np.concatenate([centre - half, centre + half], axis=1) * size
    return placed


def _sized(box: Corners) -> list[float]:
    """Left, top, width and height of a box that is given by its corners."""
    return [float(value) for value in (*box[:2], *(box[2:] - box[:2]))]
