"""A handful of files that are unfit to be used, as they turn up in real folders."""

import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np


def plant(folder: Path) -> None:
    """Add bad items to the training split of a YOLO data set: each has one thing wrong with it."""
    images, labels = folder / "images" / "train", folder / "labels" / "train"
    good = sorted(images.glob("train-*.jpg"))[:4]

    def copy(source: Path, name: str) -> Path:
        """A picture of its own (one pixel row less), so that it is no duplicate."""
        picture = cv2.imread(str(source))
        assert picture is not None
        cv2.imwrite(str(images / name), picture[:-1])
        (labels / name).with_suffix(".txt").write_text((labels / source.name).with_suffix(".txt").read_text())
        return images / name

    (images / "bad-empty.jpg").touch()
    (images / "bad-text.jpg").write_text("This is not a picture.\n")
    whole = good[0].read_bytes()
    (images / "bad-truncated.jpg").write_bytes(whole[: len(whole) // 3])
    (images / "bad-bomb.png").write_bytes(_bomb())
    copy(good[1], "bad-class.jpg").parents[2].joinpath("labels/train/bad-class.txt").write_text("42 0.5 0.5 0.2 0.2\n")
    copy(good[2], "bad-box.jpg").parents[2].joinpath("labels/train/bad-box.txt").write_text("3 0.9 0.5 0.6 0.2\n")
    copy(good[3], "bad-words.jpg").parents[2].joinpath("labels/train/bad-words.txt").write_text(
        "seven 0.5 0.5 0.2 0.2\n"
    )
    leaked = folder / "images" / "test" / "test-0000.jpg"
    shutil.copy(leaked, images / "bad-leaked.jpg")
    shutil.copy(folder / "labels" / "test" / "test-0000.txt", labels / "bad-leaked.txt")


def _bomb() -> bytes:
    """A PNG of a few bytes whose header promises 60,000 x 60,000 pixels."""
    ok, encoded = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))
    assert ok
    content = bytearray(encoded.tobytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)
