"""Ask packages about a holdout, as a server would: the same files, the same pre- and post-processing, no torch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from ..recipes.detection import golden
from ..recipes.detection.evaluate import Accuracy, map50, match, score
from ..recipes.detection.predict import Detections, Image, Predictor, decode
from ..runtime.artifacts import ModelPackage, Sample, Scores
from ..runtime.blobs import get_blob
from ..runtime.errors import Corrupt, PlatformError
from ..runtime.packages import fetch_package
from ..runtime.parallel import each
from ..runtime.ports import Store
from ..statistics.bootstrap import bounds
from .gate import Comparison

CURVE_FROM = 0.001
"""Confidence from which on detections count for average precision; serving starts at the package's own."""

TIMED = 30
"""Images that are timed, after three that warm up."""


@dataclass(frozen=True)
class Answers:
    """What a package says about each image, class ids in the order of its own names; and how it does that.

    Args:
        conf: Confidence that it serves with.
        latency_ms: Median time of one image on one thread.
        size_mb: Of the exported model, in 10⁶ bytes.
    """

    predictions: tuple[Detections, ...]
    names: tuple[str, ...]
    conf: float
    latency_ms: float
    size_mb: float

    def about(self, images: slice) -> "Answers":
        """The answers for some of the images."""
        return replace(self, predictions=self.predictions[images])


def read_image(store: Store, sample: Sample) -> Image:
    """Decode a holdout image.

    Raises:
        Corrupt: It is not of the size that its labels were checked for.
    """
    image = decode(get_blob(store, sample.image))
    if image.shape[:2] != (sample.height, sample.width):
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise Corrupt(f"{sample.path} has {found} pixels, but was recorded with {sample.width} x {sample.height}.")
    return image


def ask(store: Store, package: ModelPackage, samples: Sequence[Sample], folder: Path, who: str) -> Answers:
    """Run a package over the images, after it has shown that it does here what its trainer saw.

    Args:
        folder: Receives the package's files.
        who: challenger or champion, for people.

    Raises:
        PlatformError: It does not reproduce its golden outputs, or its family is not known.
    """
    if package.family != "detection":
        raise PlatformError(f"package {package.id} is of the family {package.family!r}; only 'detection' is known.")
    predictor = Predictor(fetch_package(store, package, folder))
    if predictor.config.names != package.names:
        raise Corrupt(f"package {package.id} has other class names in its manifest than in its config.json.")
    golden.check(predictor, folder)

    def one(sample: Sample) -> Detections:
        return predictor.predict(read_image(store, sample), CURVE_FROM)

    predictions = tuple(each(one, samples, f"evaluate: {who} saw"))
    conf, size = predictor.config.conf, package.files["model.onnx"].size / 1e6
    return Answers(predictions, package.names, conf, latency(store, predictor, samples), size)


def latency(store: Store, predictor: Predictor, samples: Sequence[Sample]) -> float:
    """Median milliseconds from a decoded image to its detections, on one thread, warm, at the confidence of serving."""
    chosen = [samples[at] for at in np.linspace(0, len(samples) - 1, min(TIMED, len(samples))).astype(int)]
    for sample in (chosen * 3)[:3]:
        predictor.predict(read_image(store, sample))
    taken = []
    for sample in chosen:
        image = read_image(store, sample)
        began = time.perf_counter()
        predictor.predict(image)
        taken.append(time.perf_counter() - began)
    return median(taken) * 1000


def only(samples: Sequence[Sample], kinds: Sequence[int]) -> list[Sample]:
    """Samples with the labels of some classes alone."""
    return [s.but(boxes=tuple(box for box in s.boxes if box[0] in kinds)) for s in samples]


def scores(accuracy: Accuracy, answers: Answers) -> Scores:
    return Scores(
        map50=accuracy.map50,
        map=accuracy.map,
        class_map50=accuracy.class_map50,
        latency_ms=round(answers.latency_ms, 3),
        size_mb=answers.size_mb,
    )


def compare(
    challenger: Sequence[Detections],
    champion: Sequence[Detections],
    samples: Sequence[Sample],
    names: Sequence[str],
    known: Sequence[str],
) -> Comparison:
    """Compare two packages on the same images, over the classes that both know.

    Images of one group (a scene, a patient) are no independent evidence, so groups are resampled whole.

    Args:
        challenger: Detections with the class ids of `names`.
        champion: The same.
        names: Class names of the data and the challenger.
        known: Class names of the champion.
    """
    both = [number for number, name in enumerate(names) if name in known]
    lost = tuple(name for name in known if name not in names)
    groups, member = np.unique([sample.group for sample in samples], return_inverse=True)
    mine, theirs = ([match(found, samples, len(names))[n] for n in both] for found in (challenger, champion))

    def change(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        images = counts[:, member]
        return map50(mine, images) - map50(theirs, images)

    boxes = sum(int(entry.positives.sum()) for entry in mine)
    # The loss that these images happen not to show is taken to be one box of the average image.
    difference = bounds(change, len(groups), unseen=len(groups) / boxes) if boxes else None
    return Comparison(difference, len(groups), len(both), lost)


def assess(answers: Answers, samples: Sequence[Sample], names: Sequence[str]) -> tuple[Scores, tuple[Detections, ...]]:
    """Score a package over those classes of the data that it knows.

    Args:
        names: Class names of the data.

    Returns:
        Its scores, with None for a class that it does not know; its detections with the class ids of the data.
    """
    found = tuple(one.renumbered(answers.names, names) for one in answers.predictions)
    kinds = [number for number, name in enumerate(names) if name in answers.names]
    return scores(score(found, only(samples, kinds), names), answers), found
