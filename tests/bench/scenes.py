"""Pictures that a detector may be asked about: the demo's process with natural variation, as it is or changed."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from kfp_flywheel.components.recipes.detection import corruptions
from kfp_flywheel.components.recipes.detection.predict import Image
from kfp_flywheel.components.runtime.artifacts import Box
from kfp_flywheel.pipelines.demo import digits
from numpy.typing import NDArray

from .corruptions import corrupt

SIZE = 160


@dataclass(frozen=True)
class Scene:
    """What is photographed, and what happens to the photograph.

    Args:
        split: Whose photographs of the demo lie behind the digits.
        classes: Digits that occur, all of them equally often.
        extent: How much larger the digits are than the demo's.
        most: Digits in an image, at most.
        corruption, severity: Of the package imagecorruptions, 1 to 5; or "our NAME" for one of
            `recipes.detection.corruptions`, 1 to 3. None at severity 0.
    """

    split: str = "test"
    classes: tuple[int, ...] = tuple(range(10))
    extent: float = 1.0
    most: int = 5
    corruption: str = ""
    severity: int = 0


@functools.cache
def _material(split: str) -> tuple[list[Image], NDArray[np.float32], NDArray[np.int64]]:
    """Photographs of a split; the handwriting that the detector has never seen, (n, 8, 8), and its classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    unseen = np.random.default_rng(0).permutation(len(found.target))[1400:]
    return digits._photographs(split), found.images[unseen].astype(np.float32) / 16, found.target[unseen]


def images(scene: Scene, count: int, seed: int) -> Iterator[tuple[Image, tuple[Box, ...]]]:
    """The demo's process with natural variation of light, blur, noise and JPEG.

    Yields:
        An RGB image of SIZE × SIZE, and its boxes.
    """
    photographs, inks, kinds = _material(scene.split)
    mine = np.flatnonzero(np.isin(kinds, scene.classes))
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        photograph = photographs[rng.integers(len(photographs))]
        height, width = photograph.shape[:2]
        side = int(rng.integers(min(SIZE, height, width) // 2, min(height, width) // 2 + 1))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        canvas = cv2.resize(photograph[top : top + side, left : left + side], (SIZE, SIZE)).astype(np.float32)
        canvas = canvas * rng.uniform(0.6, 1.0) + rng.uniform(0, 30)
        boxes: list[Box] = []
        taken: list[tuple[int, int, int]] = []
        for _ in range(rng.integers(1, scene.most + 1)):
            index = mine[rng.integers(len(mine))]
            extent = round(scene.extent * int(rng.integers(SIZE // 6, SIZE // 3)))
            x, y = (int(v) for v in rng.integers(0, SIZE - extent, 2))
            if any(abs(x - a) < max(extent, c) and abs(y - b) < max(extent, c) for a, b, c in taken):
                continue
            taken.append((x, y, extent))
            ink = np.clip(cv2.resize(inks[index], (extent, extent), interpolation=cv2.INTER_CUBIC) * 1.3, 0, 1)
            patch = canvas[y : y + extent, x : x + extent]
            colour = rng.uniform(200, 255, 3) if float(patch.mean()) < 128 else rng.uniform(0, 55, 3)
            canvas[y : y + extent, x : x + extent] = patch * (1 - ink[..., None]) + colour * ink[..., None]
            rows, columns = np.nonzero(ink > 0.15)
            x0, x1, y0, y1 = x + columns.min(), x + columns.max() + 1, y + rows.min(), y + rows.max() + 1
            middle = (x0 + x1) / 2 / SIZE, (y0 + y1) / 2 / SIZE
            boxes.append((int(kinds[index]), *map(float, middle), float(x1 - x0) / SIZE, float(y1 - y0) / SIZE))
        image = _natural(canvas, rng)
        if scene.severity:
            image = _changed(image, scene, int(rng.integers(2**31)))
        yield image, tuple(boxes)


def _changed(image: Image, scene: Scene, seed: int) -> Image:
    ours = scene.corruption.removeprefix("our ")
    if ours != scene.corruption:
        return corruptions.corrupt(image, ours, scene.severity - 1, seed)
    return corrupt(image, scene.corruption, scene.severity, seed)


def _natural(canvas: NDArray[np.float32], rng: np.random.Generator) -> Image:
    """A little of what every camera does."""
    canvas = canvas * np.float32(np.exp(rng.normal(0, 0.12))) * rng.normal(1, 0.03, 3).astype(np.float32)
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.2, 0.7)).astype(np.float32)
    canvas = canvas + rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(0, 5))
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 97))]
    coded = cv2.imencode(".jpg", np.clip(canvas, 0, 255).astype(np.uint8), quality)[1]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR).astype(np.uint8)
