"""Boxes on images, for pages and for `flywheel predict`."""

import base64
from collections.abc import Container, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ...runtime.artifacts import Box
from .predict import Detections

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

SMALLEST = 320
"""Images whose longer side is shorter are enlarged before anything is drawn: a label needs some pixels to be read."""

TRUTH: Colour = (80, 175, 30)
FOUND: Colour = (40, 40, 225)
RIGHT: Colour = (200, 120, 30)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(
    image: Image,
    shown: Detections | Sequence[Box],
    names: Sequence[str],
    truth: Sequence[Box] = (),
    right: Container[int] = (),
) -> Image:
    """Draw boxes with their labels on a copy of an image.

    Args:
        image: BGR, shape (height, width, 3).
        shown: Detections (pixels; solid and red, with their scores), or labels (fractions; dashed and green).
        names: Class names by id. The font has ASCII only: other names are drawn as `class 3`.
        truth: Labels to draw beneath the detections.
        right: Positions of the detections that are known to be right: blue instead of red.

    Returns:
        A BGR image of the same proportions, enlarged if its longer side is below `SMALLEST` pixels.
    """
    height, width = image.shape[:2]
    factor = max(1.0, SMALLEST / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if factor > 1 else image.copy()
    labels, found = (truth, shown) if isinstance(shown, Detections) else (shown, None)
    for number, x, y, w, h in labels:
        corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2], np.float32) * np.array(size * 2, np.float32)
        _box(canvas, corners, _name(names, number), TRUTH, below=found is not None, dashed=True)
    if found is not None:
        for at, (corners, score, number) in enumerate(zip(found.boxes, found.scores, found.classes, strict=True)):
            label, colour = f"{_name(names, int(number))} {score:.2f}", RIGHT if at in right else FOUND
            _box(canvas, corners * factor, label, colour, below=False, dashed=False)
    return canvas.astype(np.uint8, copy=False)


def to_jpeg_uri(image: Image, width: int) -> str:
    """Encode an image for a page that needs no other file.

    Args:
        image: BGR, shape (height, width, 3).
        width: Neither side becomes longer than this, in pixels; smaller images keep their size.

    Returns:
        `data:image/jpeg;base64,…`
    """
    factor = min(1.0, width / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor < 1 else image
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _name(names: Sequence[str], number: int) -> str:
    name = names[number] if 0 <= number < len(names) else f"class {number}"
    return name if name.isascii() and name.isprintable() else f"class {number}"


def _box(
    canvas: Image, corners: npt.NDArray[np.float32], label: str, colour: Colour, *, below: bool, dashed: bool
) -> None:
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = (round(float(value)) for value in np.clip(corners, 0, [width - 1, height - 1] * 2))
    thick = max(2, round(max(height, width) / 400))
    if dashed:
        _dashes(canvas, (x0, y0), (x1, y1), colour, thick)
    else:
        cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, thick)
    scale = max(0.42, max(height, width) / 1600)
    (wide, high), base = cv2.getTextSize(label, FONT, scale, 1)
    left = max(0, min(x0, width - wide - 4))
    top = y1 + 1 if below else y0 - high - base - 3
    top = max(0, min(top, height - high - base - 3))
    cv2.rectangle(canvas, (left, top), (left + wide + 4, top + high + base + 2), colour, cv2.FILLED)
    at, white = (left + 2, top + high + 1), (255, 255, 255)
    cv2.putText(canvas, label, at, FONT, scale, white, max(1, thick // 2), cv2.LINE_AA)


def _dashes(canvas: Image, start: tuple[int, int], end: tuple[int, int], colour: Colour, thick: int) -> None:
    (x0, y0), (x1, y1), dash = start, end, 4 * thick
    for x in range(x0, x1, 2 * dash):
        for y in (y0, y1):
            cv2.line(canvas, (x, y), (min(x + dash, x1), y), colour, thick)
    for y in range(y0, y1, 2 * dash):
        for x in (x0, x1):
            cv2.line(canvas, (x, y), (x, min(y + dash, y1)), colour, thick)
