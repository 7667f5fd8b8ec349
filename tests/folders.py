"""YOLO folders for tests: real files, a few pixels wide."""

import io
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from kfp_flywheel.components.ingest import stage as ingest
from kfp_flywheel.components.runtime.artifacts import Lineage, Release, Resolution
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.snapshot import stage as snapshot
from kfp_flywheel.components.validate import stage as validate
from PIL import Image

Pixels = npt.NDArray[np.uint8]
BOX = "0 0.5 0.5 0.25 0.25\n"
DOCUMENT = "train: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]\n"


def picture(seed: int = 0, width: int = 64, height: int = 48) -> Pixels:
    """Smooth RGB colours that no turn or mirror leaves as they are, of shape (height, width, 3)."""
    rough = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def encode(image: Pixels | Image.Image, form: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(content, form, **options)
    return content.getvalue()


def jpeg(seed: int = 0) -> bytes:
    return encode(picture(seed), quality=90)


def write(folder: Path, files: Mapping[str, bytes | str], document: str | None = DOCUMENT) -> Path:
    """Write files and the data.yaml, and give the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if document is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data.yaml").write_text(document)
    return folder


def pair(split: str, name: str, seed: int, label: str = BOX) -> dict[str, bytes | str]:
    """An image and its label file, in the usual places."""
    return {f"images/{split}/{name}.jpg": jpeg(seed), f"labels/{split}/{name}.txt": label}


def small() -> dict[str, bytes | str]:
    """Twelve labelled images: six to learn from, three each to validate and to test."""
    files: dict[str, bytes | str] = {}
    for number, split in enumerate(["train"] * 6 + ["val"] * 3 + ["test"] * 3):
        files |= pair(split, f"{number:02d}", number, f"{number % 2} 0.5 0.5 0.25 0.25\n")
    return files


LINEAGE = Lineage(code="test", image="local", run="test")


def resolution(dataset: str = "") -> Resolution:
    """What resolve gives when the champion was trained on this data version, or when there is none."""
    champion = Release(
        id=f"release-{dataset}",
        lineage=LINEAGE,
        model="detector",
        version="1",
        package="p",
        package_uri="p",
        dataset=dataset,
        report="report",
    )
    found = champion if dataset else None
    return Resolution(id="resolution", lineage=LINEAGE, endpoint="detector", champion=found, config="config")


def through(
    platform: Platform,
    source: Path | str,
    out: Path,
    run: str = "run",
    config: str = "config",
    champion: str = "",
    test_fraction: float = 0.15,
) -> str:
    """From a folder to a data version, as the pipeline goes; gives the state.

    Args:
        champion: The data version that the champion was trained on, to grow from.
    """
    text = platform.line()
    ingest.run(str(out / "batch"), str(source), text, run)
    validate.run(str(out / "batch"), str(out / "clean"), str(out / "page.html"), 0.05, 50.0, text, run)
    resolution(champion).write(out / "champion")
    paths = [str(out / name) for name in ("clean", "champion", "dataset")]
    grow = "champion" if champion else "nothing"
    return snapshot.run(*paths, config, 0.15, test_fraction, "", grow, text, run)
