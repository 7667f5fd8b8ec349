"""A real data set without a download: scikit-learn's handwritten digits on scikit-image's photographs.

Whole images belong to a split; the digits, and the photographs behind them, are disjoint over splits.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
NAMES = tuple(str(digit) for digit in range(10))
PHOTOGRAPHS = {
    "train": ("coffee", "astronaut", "rocket", "immunohistochemistry", "brick", "grass"),
    "val": ("chelsea", "gravel"),
    "test": ("hubble_deep_field", "camera", "coins"),
}


def _photographs(split: str) -> list[Image]:
    from skimage import data

    found = [np.asarray(getattr(data, name)()) for name in PHOTOGRAPHS[split]]
    return [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in found]


def images(
    split: str, count: int, size: int, seed: int
) -> Iterator[tuple[Image, list[tuple[int, float, float, float, float]]]]:
    """Draw labelled images of one split.

    Args:
        split: train, val or test.
        count: Number of images.
        size: Side of the square images, in pixels.
        seed: The same seed gives the same bytes.

    Yields:
        An RGB image of shape (size, size, 3), and its boxes in the YOLO convention.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    shuffled = np.random.default_rng(0).permutation(len(digits.target))
    mine = dict(zip(PHOTOGRAPHS, np.split(shuffled, [1100, 1400]), strict=True))[split]
    backgrounds = _photographs(split)
    rng = np.random.default_rng([seed, list(PHOTOGRAPHS).index(split)])
    for _ in range(count):
        photograph = backgrounds[rng.integers(len(backgrounds))]
        height, width = photograph.shape[:2]
        side = int(rng.integers(min(size, height, width) // 2, min(height, width) // 2 + 1))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        canvas = cv2.resize(photograph[top : top + side, left : left + side], (size, size)).astype(np.float32)
        canvas = canvas * rng.uniform(0.6, 1.0) + rng.uniform(0, 30)
        boxes: list[tuple[int, float, float, float, float]] = []
        taken: list[tuple[int, int, int]] = []
        for _ in range(rng.integers(1, 6)):
            index = mine[rng.integers(len(mine))]
            extent = int(rng.integers(size // 6, size // 3))
            x, y = (int(v) for v in rng.integers(0, size - extent, 2))
            if any(abs(x - a) < max(extent, c) and abs(y - b) < max(extent, c) for a, b, c in taken):
                continue
            taken.append((x, y, extent))
            ink = cv2.resize(
                digits.images[index].astype(np.float32) / 16, (extent, extent), interpolation=cv2.INTER_CUBIC
            )
            ink = np.clip(ink * 1.3, 0, 1)[..., None]
            patch = canvas[y : y + extent, x : x + extent]
            bright = float(patch.mean()) < 128
            colour = rng.uniform(200, 255, 3) if bright else rng.uniform(0, 55, 3)
            canvas[y : y + extent, x : x + extent] = patch * (1 - ink) + colour * ink
            rows, columns = np.nonzero(ink[..., 0] > 0.15)
            x0, x1 = x + columns.min(), x + columns.max() + 1
            y0, y1 = y + rows.min(), y + rows.max() + 1
            boxes.append(
                (
                    int(digits.target[index]),
                    (x0 + x1) / 2 / size,
                    (y0 + y1) / 2 / size,
                    (x1 - x0) / size,
                    (y1 - y0) / size,
                )
            )
        yield np.clip(canvas, 0, 255).astype(np.uint8), boxes


def write(folder: Path, counts: dict[str, int], size: int = 160, seed: int = 0) -> Path:
    """Write a YOLO data set and give the path of its data.yaml.

    Args:
        folder: Receives `images/<split>`, `labels/<split>` and `data.yaml`.
        counts: Images of each split.
    """
    for split, count in counts.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number, (image, boxes) in enumerate(images(split, count, size, seed)):
            name = f"{split}-{number:04d}"
            ok, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
            assert ok
            (folder / "images" / split / f"{name}.jpg").write_bytes(encoded.tobytes())
            lines = "".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in boxes)
            (folder / "labels" / split / f"{name}.txt").write_text(lines)
    document = folder / "data.yaml"
    splits = "".join(f"{split}: images/{split}\n" for split in counts)
    document.write_text(f"path: .\n{splits}names: [{', '.join(repr(name) for name in NAMES)}]\n")
    return document
