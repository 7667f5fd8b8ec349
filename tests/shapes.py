"""A data set that a small detector learns in seconds: bright discs and squares on dim noise."""

from pathlib import Path

import cv2
import numpy as np

NAMES = ("disc", "square")


def write(folder: Path, counts: dict[str, int], size: int = 96, seed: int = 0, negative: bool = False) -> Path:
    """Write a YOLO data set with given splits, and give the path of its data.yaml. A negative has dark shapes on light
    noise, of which a detector of the others knows nothing."""
    for index, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, index])
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
            lines = []
            for column in range(rng.integers(1, 3)):
                kind, half = int(rng.integers(2)), int(rng.integers(size // 8, size // 5))
                x = int(rng.integers(half, size // 2 - half)) + column * size // 2
                y = int(rng.integers(half, size - half))
                colour = tuple(int(v) for v in rng.integers(150, 256, 3))
                if kind:
                    cv2.rectangle(image, (x - half, y - half), (x + half, y + half), colour, -1)
                else:
                    cv2.circle(image, (x, y), half, colour, -1)
                side = (2 * half + 1) / size
                lines.append(f"{kind} {(x + 0.5) / size:.6f} {(y + 0.5) / size:.6f} {side:.6f} {side:.6f}\n")
            seen = 255 - image if negative else image
            cv2.imwrite(str(folder / "images" / split / f"{split}-{number:03d}.jpg"), seen)
            (folder / "labels" / split / f"{split}-{number:03d}.txt").write_text("".join(lines))
    document = folder / "data.yaml"
    splits = "".join(f"{split}: images/{split}\n" for split in counts)
    document.write_text(f"path: .\n{splits}names: {list(NAMES)}\n")
    return document
