"""A data version as the folder that ultralytics reads: images out of the store, labels written from the boxes."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ...runtime.artifacts import Box, DatasetVersion, Sample
from ...runtime.blobs import fetch_blob, get_blob
from ...runtime.ports import Store
from ...runtime.records import from_lines

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def samples_of(store: Store, dataset: DatasetVersion) -> list[Sample]:
    """All samples of a data version, each with its split, in the version's order."""
    return from_lines(get_blob(store, dataset.index), Sample)


def materialize(store: Store, dataset: DatasetVersion, folder: Path) -> Path:
    """Write the training and validation images of a data version as a YOLO folder.

    Files are numbered in the version's order, so the folder is the same on any machine. Images may be shared with the
    store: ultralytics replaces a JPEG that it mends, and never writes into one.

    Args:
        folder: Receives `images/<split>`, `labels/<split>` and `data.yaml`.

    Returns:
        The path of data.yaml.

    Raises:
        Corrupt: An image is not the one that was stored.
        PlatformError: The folder cannot be written.
    """
    samples = samples_of(store, dataset)
    for split in ("train", "val"):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(sample for sample in samples if sample.split == split):
            suffix = Path(sample.image.uri).suffix.lower()  # the path may lie about the format
            image = images / f"{number:07d}{suffix if suffix in SUFFIXES else '.jpg'}"
            fetch_blob(store, sample.image, image)
            (labels / f"{number:07d}.txt").write_text(label_lines(sample.boxes))
    document = folder / "data.yaml"
    names = dict(enumerate(dataset.names))
    description = {"path": str(folder.absolute()), "train": "images/train", "val": "images/val", "names": names}
    document.write_text(yaml.safe_dump(description, allow_unicode=True), encoding="utf-8")
    return document


def label_lines(boxes: Sequence[Box]) -> str:
    """Boxes as the lines of a YOLO label file; every digit of a float is kept."""
    return "".join(f"{c} {x!r} {y!r} {w!r} {h!r}\n" for c, x, y, w, h in boxes)


def cache_mode(samples: Sequence[Sample], image_size: int, budget: int) -> str | bool:
    """How ultralytics is to keep decoded images: in memory if they fit, else it decodes them again each epoch.

    Args:
        samples: Images of training and validation.
        image_size: Longest side after resizing, in pixels.
        budget: Bytes of memory that they may take.

    Returns:
        "ram" or False, as its `cache` argument wants it.
    """
    ratios = (image_size / max(sample.width, sample.height) for sample in samples)
    pixels = sum(int(s.width * r) * int(s.height * r) for s, r in zip(samples, ratios, strict=True))
    return "ram" if 3 * pixels <= budget else False
