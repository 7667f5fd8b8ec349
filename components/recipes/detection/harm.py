"""Does a change hurt? How much accuracy a window has lost, without its labels.

A detector that sees badly is less sure of its boxes, or misses them, by the kind of change: blur makes it doubt, fog
takes boxes away and leaves the others as sure as before. What each is worth in accuracy is measured once for a package,
on labelled images that are made worse on purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ...runtime.artifacts import Sample
from ...runtime.records import Record
from ...statistics.two_sample import ks
from .corruptions import CORRUPTIONS, corrupt
from .evaluate import score
from .features import IMAGE_FEATURES
from .predict import Image, Predictor
from .reference import Reference
from .window import Window

CURVE_FROM = 0.01
"""Score from which on detections count for average precision here; what is below hardly matters to it."""
IMAGES = 60
"""Labelled images that are made worse."""
CONFIDENCE, BOXES = np.meshgrid(np.linspace(0.1, 6, 119), np.linspace(0.1, 3, 59), indexing="ij")
"""Exponents among which the fit chooses."""
ONE_SIDED_95 = 1.645

Floats = NDArray[np.float64]


class Estimator(Record):
    """How the accuracy of a package falls with its confidence and its boxes.

    mAP50 = `map50` · (mean confidence)^`confidence` · (boxes an image)^`boxes`, both relative to the reference's.

    Args:
        map50: Of the images that it was calibrated on, as they are; 0 if they have no labels.
        error: Mean absolute error of mAP50 on the same images, made worse.
        conditions: In how many ways they were made worse.
    """

    map50: float
    confidence: float
    boxes: float
    error: float
    conditions: int


class Loss(NamedTuple):
    """An estimated loss of mAP50, and what it is at least with 95 % confidence, as far as chance goes."""

    estimate: float
    at_least: float

    def hurts(self, drop: float) -> bool:
        """Whether it is as much as matters, and surely a loss."""
        return self.estimate >= drop and self.at_least > 0


def confidence_drop(reference: Reference, window: Window) -> float | None:
    """By how much the mean confidence of boxes has fallen, relative to the reference's; below 0 if it rose.

    Returns:
        1 if there is no box left; None if the reference has none, or the window no request.
    """
    if not len(reference.scores) or not window.requests:
        return None
    if not len(window.scores):
        return 1.0
    return 1 - float(window.scores.mean(dtype=np.float64) / reference.scores.mean(dtype=np.float64))


def estimate(estimator: Estimator, reference: Reference, window: Window) -> float | None:
    """The estimated loss of mAP50 against the holdout; None if it cannot be known."""
    found = loss(estimator, reference, window)
    return None if found is None else found.estimate


def hurts(estimator: Estimator, reference: Reference, windows: Sequence[Window], drop: float) -> bool:
    """Whether windows that are different are worse: every single one of them has lost as much as matters.

    Args:
        windows: Two that follow one another, so that what passes by itself is let pass.
        drop: Loss of mAP50 that matters. 0.05 keeps apart what costs less than 0.02 and what costs more than 0.10.
    """
    losses = [loss(estimator, reference, window) for window in windows]
    return bool(losses) and all(found and found.hurts(drop) for found in losses)


def loss(estimator: Estimator, reference: Reference, window: Window) -> Loss | None:
    """Estimate a window's loss, and how sure that is for so few images on both sides.

    The error is the one of ratios of means over images, by their influence functions (the delta method): images are
    independent, boxes of one image are not.

    Returns:
        All of mAP50 if there is no box left; None without a request, or a reference that has boxes and labels.
    """
    if not estimator.map50 or not window.requests or not len(reference.scores):
        return None
    if not len(window.scores):
        return Loss(estimator.map50, estimator.map50)
    seen, known = _Seen.of(window.scores, window.offsets), _Seen.of(reference.scores, reference.offsets)
    fewer = 1 - seen.boxes / known.boxes
    # Pictures that have changed in a share of the images take boxes away from these at most, and the distance of any
    # feature is no more than this share. Where more are missing, there is less to be seen.
    exponent = estimator.boxes if 0 < fewer <= _pictures_changed(reference, window) else 0.0
    change = exponent * np.log(seen.boxes / known.boxes)
    change += estimator.confidence * np.log(seen.confidence / known.confidence)
    error = sum(side.influence(estimator.confidence, exponent).var() / len(side.sums) for side in (seen, known)) ** 0.5
    estimated, at_least = (estimator.map50 * (1 - np.exp(change + z * error)) for z in (0, ONE_SIDED_95))
    return Loss(max(float(estimated), 0.0), max(float(at_least), 0.0))


@dataclass(frozen=True)
class _Seen:
    """Of each image the sum of its boxes' confidences, and their number; and the means over boxes and images."""

    sums: Floats
    counts: Floats
    confidence: float
    boxes: float

    @classmethod
    def of(cls, scores: NDArray[np.float32], offsets: NDArray[np.int64]) -> "_Seen":
        counts = np.diff(offsets).astype(np.float64)
        image = np.repeat(np.arange(len(counts)), np.diff(offsets))
        sums = np.bincount(image, scores, len(counts)).astype(np.float64)
        return cls(sums, counts, float(sums.sum() / counts.sum()), float(counts.mean()))

    def influence(self, confidence: float, boxes: float) -> Floats:
        """Of each image on the logarithm of confidence^`confidence` · boxes^`boxes`."""
        on_confidence = (self.sums - self.confidence * self.counts) / (self.boxes * self.confidence)
        return confidence * on_confidence + boxes * (self.counts - self.boxes) / self.boxes


def _pictures_changed(reference: Reference, window: Window) -> float:
    """Share of images whose pictures have changed, at least."""
    mine = np.isin(reference.feature_names, IMAGE_FEATURES)
    return float(ks(reference.features[:, mine], window.features[:, mine])[0].max(initial=0))


def calibrate(predictor: Predictor, labelled: Sequence[tuple[Image, Sample]]) -> Estimator:
    """Find out what a loss of confidence and of boxes is worth: each corruption in three strengths on the same images.

    Args:
        labelled: Images of the holdout, decoded, with their labels; of more than IMAGES, some are taken.
    """
    some = [labelled[at] for at in np.linspace(0, len(labelled) - 1, min(IMAGES, len(labelled))).astype(int)]
    small = [_shrunk(image, sample, predictor.config.image_size) for image, sample in some]
    base = _measure(predictor, small, [image for image, _ in small])
    worse = [
        _measure(predictor, small, [corrupt(image, name, strength, seed) for seed, (image, _) in enumerate(small)])
        for name, (_, strengths) in CORRUPTIONS.items()
        for strength in range(len(strengths))
    ]
    if not base.all():
        return Estimator(map50=0.0, confidence=1.0, boxes=1.0, error=0.0, conditions=0)
    map50, confidence, boxes = (np.array(worse) / base).T
    confidence, boxes = (ratio.clip(1e-9, 1)[:, None, None] for ratio in (confidence, boxes))
    error = confidence**CONFIDENCE * boxes**BOXES - map50[:, None, None]
    best = np.unravel_index((error**2).sum(0).argmin(), CONFIDENCE.shape)
    return Estimator(
        map50=float(base[0]),
        confidence=round(float(CONFIDENCE[best]), 3),
        boxes=round(float(BOXES[best]), 3),
        error=float(np.abs(error[:, *best]).mean() * base[0]),
        conditions=len(worse),
    )


def _shrunk(image: Image, sample: Sample, size: int) -> tuple[Image, Sample]:
    """No larger than the model sees it."""
    gain = size / max(image.shape[:2])
    if gain < 1:
        side = (max(round(image.shape[1] * gain), 1), max(round(image.shape[0] * gain), 1))
        image = cv2.resize(image, side, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return image, sample.but(width=image.shape[1], height=image.shape[0])


def _measure(predictor: Predictor, labelled: Sequence[tuple[Image, Sample]], images: Sequence[Image]) -> Floats:
    """mAP50 of labelled images as they now are, mean confidence of a box, and boxes an image."""
    found = [predictor.predict(image, CURVE_FROM) for image in images]
    scores = np.concatenate([seen.scores for seen in found])
    scores = scores[scores > predictor.config.conf]
    map50 = score(found, [sample for _, sample in labelled], predictor.config.names).map50
    return np.array([map50 or 0.0, scores.mean(dtype=np.float64) if len(scores) else 0.0, len(scores) / len(images)])
