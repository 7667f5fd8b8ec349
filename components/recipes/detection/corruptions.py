"""What can happen to a camera's pictures, in three strengths: for finding out how much of it a detector bears.

They are made on images of the size that the model sees: what is done to larger ones would be averaged out.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from .predict import Image

Corruption = Callable[[Image, float, np.random.Generator], NDArray[np.float32] | Image]
SIDE = 160
"""Blur and blocks are given in pixels of an image of this side, and grow with it."""


def _noise(image: Image, deviation: float, rng: np.random.Generator) -> NDArray[np.float32]:
    return image + rng.standard_normal(image.shape, np.float32) * np.float32(deviation)


def _blur(image: Image, sigma: float, rng: np.random.Generator) -> Image:
    blurred: Image = cv2.GaussianBlur(image, (0, 0), sigma * max(image.shape[:2]) / SIDE).astype(np.uint8, copy=False)
    return blurred


def _light(image: Image, gain: float, rng: np.random.Generator) -> NDArray[np.float32]:
    return image * np.float32(gain)


def _glare(image: Image, added: float, rng: np.random.Generator) -> NDArray[np.float32]:
    return image + np.float32(added)


def _contrast(image: Image, gain: float, rng: np.random.Generator) -> NDArray[np.float32]:
    mean = np.float32(image.mean())
    changed: NDArray[np.float32] = (image - mean) * np.float32(gain) + mean
    return changed


def _jpeg(image: Image, quality: float, rng: np.random.Generator) -> Image:
    coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    decoded: Image = cv2.imdecode(coded, cv2.IMREAD_COLOR).astype(np.uint8, copy=False)
    return decoded


def _blocks(image: Image, block: float, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    side = block * max(height, width) / SIDE
    small = cv2.resize(image, (max(int(width / side), 1), max(int(height / side), 1)), interpolation=cv2.INTER_AREA)
    large: Image = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)
    return large


def _dirt(image: Image, spots: float, rng: np.random.Generator) -> Image:
    dirty, side = image.copy(), max(max(image.shape[:2]) // 8, 1)
    for _ in range(int(spots)):
        y, x = (int(rng.integers(length)) for length in image.shape[:2])
        dirty[y : y + side, x : x + side] = rng.integers(0, 256, 3)
    return dirty


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "noise": (_noise, (15, 30, 50)),
    "blur": (_blur, (1.5, 2.5, 4)),
    "darkness": (_light, (0.6, 0.4, 0.25)),
    "glare": (_glare, (40, 80, 120)),
    "contrast": (_contrast, (0.6, 0.35, 0.2)),
    "jpeg": (_jpeg, (20, 10, 5)),
    "blocks": (_blocks, (2, 3.5, 5)),
    "dirt": (_dirt, (3, 8, 16)),
}
"""How to make each, and its strength: grey levels, pixels, a factor, JPEG's quality, a number of spots."""


def corrupt(image: Image, name: str, strength: int, seed: int) -> Image:
    """Corrupt an image.

    Args:
        image: (height, width, 3), 8 bits.
        name: One of CORRUPTIONS.
        strength: 0, 1 or 2.
        seed: The same seed gives the same image.
    """
    make, strengths = CORRUPTIONS[name]
    changed = make(image, strengths[strength], np.random.default_rng(seed))
    return np.clip(changed, 0, 255).astype(np.uint8)
