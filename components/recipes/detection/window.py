"""What a model was asked, and what it answered: requests of the prediction log in the order they came."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Picture(NamedTuple):
    """Where an encoded image lies: `size` bytes from `offset` on in the object at `uri`; they hash to `sha256`."""

    uri: str
    sha256: str
    offset: int
    size: int


class Window(NamedTuple):
    """Requests that are judged together.

    Args:
        at: (n,): when each came, in seconds since the epoch.
        feature_names: (k,).
        features: (n, k): see `features.features`; NaN where an image has no box to describe.
        scores: (m,): of all detections, image by image.
        classes: (m,): class ids.
        boxes: (m, 4): x0, y0, x1, y1 in pixels of the image.
        offsets: (n + 1,): image i has scores[offsets[i]:offsets[i + 1]].
        embeddings: (n, d).
        pictures: One a request, or none at all.
    """

    at: NDArray[np.float64]
    feature_names: NDArray[np.str_]
    features: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    offsets: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    pictures: tuple[Picture, ...] = ()

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.at)

    def part(self, start: int, stop: int) -> "Window":
        """The requests from `start` to before `stop`."""
        start, stop, _ = slice(start, stop).indices(self.requests)
        stop = max(start, stop)
        first, last = self.offsets[start], self.offsets[stop]
        return Window(
            at=self.at[start:stop],
            feature_names=self.feature_names,
            features=self.features[start:stop],
            scores=self.scores[first:last],
            classes=self.classes[first:last],
            boxes=self.boxes[first:last],
            offsets=self.offsets[start : stop + 1] - first,
            embeddings=self.embeddings[start:stop],
            pictures=self.pictures[start:stop],
        )

    def class_counts(self, classes: int) -> NDArray[np.int64]:
        """(n, classes): detections of each class."""
        image = np.repeat(np.arange(self.requests), np.diff(self.offsets))
        counts = np.zeros((self.requests, classes), np.int64)
        np.add.at(counts, (image, self.classes), 1)
        return counts
