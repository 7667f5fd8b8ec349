"""Run a packaged detector on ONNX Runtime: own pre- and post-processing, nothing of the framework that trained it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ...runtime.errors import Corrupt, PlatformError, UserError
from ...runtime.records import Record

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BLOCK = 128
"""Boxes that suppression compares at a time."""


class PackageConfig(Record):
    """Pre- and post-processing as data: with the model file, all that a server needs.

    Args:
        version: Of this format. A reader refuses any other.
        names: Class names; a class id is a position in it.
        image_size: Side of the model's square input, in pixels.
        padding: Grey value around an image that is not square.
        divisor: Pixel values are divided by it.
        conf: A detection needs a higher score.
        iou: Of two boxes of one class that overlap more, the weaker one goes.
        max_det: Detections of an image at most, the best ones.
        max_candidates: Boxes that suppression looks at, at most, the best ones.
        class_offset: Boxes are moved apart by this many pixels a class, so that one suppression treats all classes.
    """

    version: Literal["detection.v1"] = "detection.v1"
    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    image_size: Annotated[int, Meta(ge=32, multiple_of=32)]
    padding: Annotated[int, Meta(ge=0, le=255)] = 114
    divisor: Annotated[float, Meta(gt=0)] = 255.0
    conf: Annotated[float, Meta(ge=0, lt=1)] = 0.25
    iou: Annotated[float, Meta(gt=0, le=1)] = 0.7
    max_det: Annotated[int, Meta(ge=1)] = 300
    max_candidates: Annotated[int, Meta(ge=1)] = 30_000
    class_offset: Annotated[float, Meta(gt=0)] = 7680.0

    @classmethod
    def read(cls, path: Path) -> "PackageConfig":
        """Read a package's config.json.

        Raises:
            Corrupt: It is missing, or of another version.
        """
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except OSError as error:
            raise Corrupt(f"{path} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True)
class Detections:
    """What a model sees in one image, best first.

    Args:
        boxes: (n, 4): x0, y0, x1, y1 in pixels of the image as it was given, within it.
        scores: (n,), falling, between 0 and 1.
        classes: (n,), class ids.
        embedding: (d,), the model's pooled features of the whole image.
    """

    boxes: Floats
    scores: Floats
    classes: Ints
    embedding: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def renumbered(self, names: Sequence[str], to: Sequence[str]) -> "Detections":
        """The same with the class ids of another list of names; those of classes that it lacks are left out."""
        table = np.array([to.index(name) if name in to else -1 for name in names], dtype=np.int64)
        classes = table[self.classes]
        known = classes >= 0
        return Detections(self.boxes[known], self.scores[known], classes[known], self.embedding)


def decode(content: bytes) -> Image:
    """Decode an image file: upright by its EXIF orientation, 8 bits, three channels whatever it had.

    Returns:
        (height, width, 3), blue, green, red.

    Raises:
        UserError: These bytes are no image that can be decoded.
    """
    try:
        found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:
        raise UserError(f"{len(content)} bytes cannot be decoded as an image: {error.err}.") from error
    if found is None:
        raise UserError(f"{len(content)} bytes are not an image.", "send a JPEG, PNG, WebP, BMP or TIFF file")
    image: Image = found.astype(np.uint8, copy=False)
    return image


class Placement(NamedTuple):
    """Where an image lies in the model's square input: gains are input pixels per image pixel, pads input pixels."""

    gain_x: float
    gain_y: float
    pad_x: int
    pad_y: int


def letterbox(image: Image, size: int, padding: int) -> tuple[Image, Placement]:
    """Scale an image to fit into a square and centre it there.

    Rounding is the one of ultralytics' LetterBox with `rect=False`: the gain that boxes are scaled back by is the one
    of each side as it was rounded, and an odd pixel of padding goes to the right and to the bottom.

    Args:
        image: (height, width, 3).
        size: Side of the square, in pixels.
        padding: Grey value around the image.
    """
    height, width = image.shape[:2]
    gain = min(size / height, size / width)
    inner_w, inner_h = max(round(width * gain), 1), max(round(height * gain), 1)
    if (inner_w, inner_h) != (width, height):
        image = cv2.resize(image, (inner_w, inner_h), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    left, top = round((size - inner_w) / 2 - 0.1), round((size - inner_h) / 2 - 0.1)
    if (inner_w, inner_h) != (size, size):
        square = np.full((size, size, 3), padding, np.uint8)
        square[top : top + inner_h, left : left + inner_w] = image
        image = square
    return image, Placement(inner_w / width, inner_h / height, left, top)


def to_tensor(square: Image, divisor: float) -> Floats:
    """Planes in the order red, green, blue: (1, 3, size, size), divided by `divisor`."""
    tensor = np.empty((1, 3, *square.shape[:2]), np.float32)
    for channel, plane in enumerate(cv2.split(square)):
        np.divide(plane, np.float32(divisor), out=tensor[0, 2 - channel])
    return tensor


def suppress(boxes: Floats, scores: Floats, iou: float, limit: int) -> NDArray[np.intp]:
    """Greedy non-maximum suppression.

    It stops at `limit` kept boxes, since later ones cannot change earlier ones, and compares block by block: no matrix
    of all boxes with all others is made.

    Args:
        boxes: (n, 4): x0, y0, x1, y1.
        scores: (n,); of equal ones, the first is the better.
        iou: A box goes when it overlaps a better one that stays by more than this.
        limit: Boxes to keep at most.

    Returns:
        Positions of the boxes that stay, best first.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        block = block[~_overlap(boxes[kept], boxes[block], iou).any(axis=0)]
        beaten = np.zeros(len(block), bool)
        for number, row in enumerate(_overlap(boxes[block], boxes[block], iou)):
            if not beaten[number]:
                kept.append(int(block[number]))
                if len(kept) == limit:
                    return np.array(kept, np.intp)
                beaten |= row
    return np.array(kept, np.intp)


def _overlap(a: Floats, b: Floats, iou: float) -> NDArray[np.bool_]:
    """(n, 4) and (m, 4) → (n, m): whether they overlap by more than `iou`, rounded as torchvision does it."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.T[:, :, None], b.T[:, None]
    width, height = np.minimum(ax1, bx1) - np.maximum(ax0, bx0), np.minimum(ay1, by1) - np.maximum(ay0, by0)
    common = width.clip(0) * height.clip(0)
    with np.errstate(invalid="ignore"):  # 0 / 0: two empty boxes do not overlap
        share = common / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - common)
    over: NDArray[np.bool_] = share > np.array([iou])  # an array keeps its 64 bits in the comparison
    return over


def postprocess(raw: Floats, config: PackageConfig, conf: float) -> tuple[Floats, Floats, Ints]:
    """Choose detections among a model's raw boxes.

    Args:
        raw: (4 + classes, n): centre x, centre y, width, height in input pixels, then a score of each class.
        conf: A detection needs a higher score.

    Returns:
        Boxes (m, 4) as x0, y0, x1, y1 in input pixels, scores (m,), classes (m,); best first.
    """
    best = np.minimum(raw[4:].max(axis=0), 1)  # ONNX Runtime's sigmoid can pass 1 by a rounding error
    at = np.flatnonzero(best > conf)
    if len(at) > config.max_candidates:
        at = at[np.argsort(-best[at], kind="stable")[: config.max_candidates]]
    scores, classes = best[at], raw[4:, at].argmax(axis=0)
    centre, half = raw[:2, at], raw[2:4, at] / 2
    boxes = np.concatenate([centre - half, centre + half]).T
    apart = boxes + (classes * config.class_offset).astype(np.float32)[:, None]
    kept = suppress(apart, scores, config.iou, config.max_det)
    return boxes[kept], scores[kept], classes[kept].astype(np.int64)


def place_back(boxes: Floats, placement: Placement, width: int, height: int) -> Floats:
    """Move boxes (n, 4) from the model's input to the image, `width` × `height` pixels, and clip them to it."""
    pads = np.array([placement.pad_x, placement.pad_y] * 2, np.float32)
    gains = np.array([placement.gain_x, placement.gain_y] * 2, np.float32)
    return ((boxes - pads) / gains).clip(0, np.array([width, height] * 2, np.float32))


class Predictor:
    """A package's model, ready to be asked. Safe to be shared by threads.

    Args:
        folder: Holds model.onnx and config.json.
        threads: Of one request, within the model's operators.

    Raises:
        PlatformError: A file is missing or damaged, or model and config do not belong together.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.config = PackageConfig.read(folder / "config.json")
        self._run = _open(folder / "model.onnx", self.config, threads)

    def predict(self, image_bgr: Image, conf: float | None = None) -> Detections:
        """Detect objects.

        Args:
            image_bgr: (height, width, 3), 8 bits, as `decode` gives it.
            conf: Another score limit than the package's.

        Raises:
            PlatformError: The model answers with values that are not finite.
        """
        if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.dtype != np.uint8 or not image_bgr.size:
            raise UserError(
                f"an image of shape {image_bgr.shape} and type {image_bgr.dtype} is not (height, width, 3) of 8 bits."
            )
        config = self.config
        square, placement = letterbox(image_bgr, config.image_size, config.padding)
        predictions, embedding = self._run(to_tensor(square, config.divisor))
        for name, values in (("predictions", predictions), ("embedding", embedding)):
            if not np.isfinite(values.sum(dtype=np.float64)):
                bad = int(np.size(values) - np.isfinite(values).sum())
                raise PlatformError(f"the model's output {name} has {bad} of {values.size} values that are not finite.")
        boxes, scores, classes = postprocess(predictions[0], config, config.conf if conf is None else conf)
        height, width = image_bgr.shape[:2]
        return Detections(place_back(boxes, placement, width, height), scores, classes, embedding[0])


def _open(path: Path, config: PackageConfig, threads: int) -> Callable[[Floats], tuple[Floats, Floats]]:
    import onnxruntime as ort  # 0.4 s: not for those who only want the types

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise Corrupt(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        raise Corrupt(f"{path} is not a model that ONNX Runtime can load: {str(error).splitlines()[0]}.") from error
    inputs = {item.name: item.shape for item in session.get_inputs()}
    outputs = {item.name: item.shape for item in session.get_outputs()}
    if inputs != {"images": [1, 3, config.image_size, config.image_size]}:
        raise Corrupt(f"{path} takes {inputs}, but the config says {config.image_size} pixels.")
    if list(outputs) != ["predictions", "embedding"] or outputs["predictions"][1] != 4 + len(config.names):
        raise Corrupt(f"{path} gives {outputs}, but the config has {len(config.names)} classes.")

    def run(tensor: Floats) -> tuple[Floats, Floats]:
        predictions, embedding = session.run(["predictions", "embedding"], {"images": tensor})
        return predictions, embedding

    return run
