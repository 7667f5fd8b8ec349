"""What a package does on the holdout, image by image: what monitoring compares requests with."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import Corrupt


class Reference(NamedTuple):
    """The arrays of reference.npz.

    Args:
        samples: (n,): SHA-256 of each image.
        feature_names: (k,).
        features: (n, k): see `features.features`; NaN where an image has no box to describe.
        scores: (m,): of all detections, image by image.
        offsets: (n + 1,): image i has scores[offsets[i]:offsets[i + 1]].
        class_counts: (n, classes): detections of each class.
        embeddings: (n, d).
    """

    samples: NDArray[np.str_]
    feature_names: NDArray[np.str_]
    features: NDArray[np.float32]
    scores: NDArray[np.float32]
    offsets: NDArray[np.int64]
    class_counts: NDArray[np.int64]
    embeddings: NDArray[np.float32]


def read(path: Path) -> Reference:
    """Read reference.npz.

    Raises:
        Corrupt: It is missing, damaged, or lacks an array; or the arrays do not belong together.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found = Reference(**{name: stored[name] for name in Reference._fields})
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise Corrupt(f"{path} does not hold the reference of a package: {error}.") from error
    images, names = len(found.samples), len(found.feature_names)
    shapes = (found.features.shape, found.offsets.shape, found.class_counts.shape[:1], found.embeddings.shape[:1])
    if shapes != ((images, names), (images + 1,), (images,), (images,)) or found.offsets[-1] != len(found.scores):
        raise Corrupt(f"{path} has arrays of {images} images that do not belong together.")
    return found
