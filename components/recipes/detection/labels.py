"""YOLO label text → boxes, or the reason why not. Whatever the text, it ends in one of the two."""

import math
import re

import numpy as np
import numpy.typing as npt

from ...runtime.artifacts import Box
from .rejected import Rejected

OVERFLOW = 1e-3
"""Boxes may pass the image's border by this fraction of its side (rounding); they are clipped to it."""

DOUBLED = 0.95
"""Two boxes of one class with at least this IoU are one object that was labelled twice."""

MAX_CHARACTERS = 1 << 20
MAX_BOXES = 10_000
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def parse(text: str, classes: int) -> tuple[Box, ...]:
    """Read the lines of a label file.

    A line is a class id and either centre x, centre y, width, height, or the points of a polygon (at least three x y
    pairs), of which the enclosing box is taken; all as fractions of the upright image.

    Args:
        text: The file's text; a byte order mark is allowed. Nothing but white space is background.
        classes: Ids are below this.

    Raises:
        Rejected: The first thing that is wrong, with its line.
    """
    if len(text) > MAX_CHARACTERS:
        raise Rejected("label-too-long", f"its label file is longer than {MAX_CHARACTERS >> 20} MiB")
    lines = [(number, line) for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1) if line.strip()]
    if len(lines) > MAX_BOXES:
        raise Rejected("label-too-long", f"it has {len(lines)} boxes, and the limit is {MAX_BOXES}")
    boxes = tuple(_line(f"line {number} of its labels", line.split(), classes) for number, line in lines)
    pair = _doubled(boxes)
    if pair is not None:
        one, other = (lines[index][0] for index in pair)
        raise Rejected(
            "label-doubled", f"lines {one} and {other} of its labels are the same box of class {boxes[pair[0]][0]}"
        )
    return boxes


def _line(where: str, fields: list[str], classes: int) -> Box:
    values = [_number(where, field) for field in fields]
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        known = "a class and four numbers, or a class and the points of a polygon"
        raise Rejected("label-syntax", f"{where} has {len(values)} numbers; {known} are known")
    kind = values[0]
    if kind != int(kind):
        raise Rejected("label-class", f"{where} has the class {fields[0]}, which is no whole number")
    if not 0 <= kind < classes:
        raise Rejected("label-class", f"{where} has the class {fields[0]}, and data.yaml names 0 to {classes - 1}")
    if len(values) == 5:
        x, y, width, height = values[1:]
        if width <= 0 or height <= 0:
            raise Rejected("label-no-area", f"{where} is a box of width {width:g} and height {height:g}")
        sides = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        xs, ys = values[1::2], values[2::2]
        sides = min(xs), min(ys), max(xs), max(ys)
    if min(sides) < -OVERFLOW or max(sides) > 1 + OVERFLOW:
        hint = "; these look like pixels, and fractions are known" if max(sides) > 2 else ""
        raise Rejected(
            "label-outside", f"{where} reaches from {sides[0]:g}, {sides[1]:g} to {sides[2]:g}, {sides[3]:g}{hint}"
        )
    left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in sides)
    if right <= left or bottom <= top:
        raise Rejected("label-no-area", f"{where} has no area within the image")
    if len(values) == 5 and (left, top, right, bottom) == sides:
        return int(kind), x, y, width, height  # as it was written: no rounding of our own
    return int(kind), (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _number(where: str, field: str) -> float:
    if NUMBER.fullmatch(field):
        value = float(field)
        if math.isfinite(value):
            return value
    elif field.lower().lstrip("+-") not in ("nan", "inf", "infinity"):
        raise Rejected("label-syntax", f"{where} holds {field[:40]!r}, which is no number")
    raise Rejected("label-not-finite", f"{where} holds {field[:40]!r}, which is no finite number")


def _doubled(boxes: tuple[Box, ...]) -> tuple[int, int] | None:
    """Indices of two boxes of one class that are nearly the same, if any."""
    if len(boxes) < 2:
        return None
    table = np.array(boxes, dtype=np.float64)
    low, high = table[:, 1:3] - table[:, 3:5] / 2, table[:, 1:3] + table[:, 3:5] / 2
    area = table[:, 3] * table[:, 4]
    for index in range(len(boxes) - 1):
        rest = slice(index + 1, None)
        extent = np.minimum(high[index], high[rest]) - np.maximum(low[index], low[rest])
        shared: npt.NDArray[np.float64] = np.clip(extent, 0, None).prod(axis=1)
        same = (
            (shared >= DOUBLED * (area[index] + area[rest] - shared))
            & (table[rest, 0] == table[index, 0])
            & (shared > 0)
        )
        if same.any():
            return index, index + 1 + int(same.argmax())
    return None
