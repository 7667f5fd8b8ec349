"""Labels that arrived for recorded requests, whenever that was: how good the champion truly was on them."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..recipes.detection import labels
from ..recipes.detection.evaluate import map50, match
from ..recipes.detection.log import pictures_of
from ..recipes.detection.predict import Predictor, decode
from ..recipes.detection.rejected import Rejected
from ..recipes.detection.window import Window
from ..runtime.artifacts import Blob, Sample
from ..runtime.ports import Store
from ..statistics.bootstrap import bounds
from .judge import Measured

CURVE_FROM = 0.001
MIN_IMAGES = 30
"""Labelled images from which bounds can be believed."""
LABEL = re.compile(r".*/labels/([0-9a-f]{16})\.txt")


def label_files(landing: Store, endpoint: str) -> dict[str, str]:
    """Where label files for recorded images lie: URIs by the first 16 digits of the image's SHA-256.

    They count in the folder of a request for labels and, for those that nobody asked for, in `<endpoint>/labels/`.
    """
    names = ((key, LABEL.fullmatch(key)) for key in landing.list(f"{endpoint}/"))
    return {name[1]: f"{landing.root}/{key}" for key, name in names if name}


def labelled(
    store: Store, landing: Store, endpoint: str, window: Window, classes: int
) -> Iterator[tuple[bytes, Sample, str]]:
    """The requests of a window that have labels: image, labels, and their text. Files that are no labels are left out:
    when they are trained on, validate says what is wrong with them."""
    files = label_files(landing, endpoint)
    chosen = {one.sha256: one for one in window.pictures if one.sha256[:16] in files}
    for picture, content in zip(chosen.values(), pictures_of(store, list(chosen.values())), strict=True):
        text = landing.get(files[picture.sha256[:16]]).decode(errors="replace")
        try:
            boxes = labels.parse(text, classes)
        except Rejected:
            continue
        height, width = decode(content).shape[:2]
        blob = Blob(uri=picture.uri, sha256=picture.sha256, size=picture.size)
        name = picture.sha256[:16]
        yield (
            content,
            Sample(path=name, image=blob, width=width, height=height, boxes=boxes, split=None, group=name),
            text,
        )


def measure(
    predictor: Predictor, found: Sequence[tuple[bytes, Sample, str]], holdout_map50: float | None
) -> Measured | None:
    """Accuracy on labelled requests against the holdout's.

    Returns:
        None where there is nothing to be measured: no labelled box, or no figure of the holdout.
    """
    samples = [sample for _, sample, _ in found]
    if holdout_map50 is None or not any(sample.boxes for sample in samples):
        return None
    predictions = [predictor.predict(decode(content), CURVE_FROM) for content, _, _ in found]
    matches = match(predictions, samples, len(predictor.config.names))

    def loss(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return holdout_map50 - map50(matches, counts)

    if len(samples) < MIN_IMAGES:
        return Measured(len(samples), float(loss(np.ones((1, len(samples)), np.int64))[0]), None)
    between = bounds(loss, len(samples))
    return Measured(len(samples), between.estimate, between.lower)
