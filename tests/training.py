"""The train stage as a process, as KFP runs it: `python -m tests.training FOLDER CONFIG`; and what it needs."""

import json
import os
import sys
from pathlib import Path

import cv2
import psutil
import yaml
from kfp_flywheel.components.runtime.artifacts import DatasetVersion, Holdout, Lineage, Resolution, Sample, content_id
from kfp_flywheel.components.runtime.blobs import put_blob
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.ports import Store
from kfp_flywheel.components.runtime.records import to_lines
from kfp_flywheel.components.runtime.wiring import connect

LINEAGE = Lineage(code="test", image="local", run="test")
SMALL: dict[str, object] = {
    "architecture": "narrow",
    "image_size": 64,
    "epochs": 2,
    "batch": 8,
    "learning_rate": 8e-3,
    "class_gain": 1.0,
    "mosaic": 0.0,
    "flip": 0.0,
    "scale": 0.0,
    "cpus_per_worker": 1,
}


def dataset_of(store: Store, document: Path) -> DatasetVersion:
    """A YOLO folder with given splits as a data version."""
    names = tuple(yaml.safe_load(document.read_text())["names"])
    samples: list[Sample] = []
    for split in ("train", "val", "test"):
        for path in sorted((document.parent / "images" / split).iterdir()):
            height, width = cv2.imread(str(path)).shape[:2]
            label = document.parent / "labels" / split / f"{path.stem}.txt"
            rows = [line.split() for line in label.read_text().splitlines()]
            samples.append(
                Sample(
                    path=f"images/{split}/{path.name}",
                    image=put_blob(store, path, path.suffix),
                    width=width,
                    height=height,
                    boxes=tuple((int(c), float(x), float(y), float(w), float(h)) for c, x, y, w, h in rows),
                    split=split,
                    group=path.stem,
                )
            )
    index = put_blob(store, to_lines(samples), ".jsonl")
    holdout = put_blob(store, to_lines(sample for sample in samples if sample.split == "test"), ".jsonl")
    counts = {split: sum(sample.split == split for sample in samples) for split in ("train", "val", "test")}
    id = content_id([names, index.sha256])
    return DatasetVersion(
        id=id,
        lineage=LINEAGE,
        names=names,
        counts=counts,
        index=index,
        holdouts=(Holdout(dataset=id, count=counts["test"], index=holdout),),
    )


def prepare(folder: Path, document: Path, platform: Platform | None = None) -> Platform:
    """A platform, in the folder unless one is given; and in the folder the manifests that the train stage takes."""
    platform = platform or Platform.local(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dataset_of(connect(platform).store, document).write(folder / "dataset.json")
    Resolution(id="none", lineage=LINEAGE, endpoint="detector", champion=None, config="test").write(
        folder / "champion.json"
    )
    return platform


def step(folder: Path, run_id: str = "test", platform: Platform | None = None, **config: object) -> None:
    """Run the stage in this process."""
    from kfp_flywheel.components.train.stage import run

    paths = [str(folder / f"{name}.json") for name in ("dataset", "champion", "package")]
    run(*paths, (platform or Platform.local(folder)).line(), run_id, **{**SMALL, **config})


def below(pid: int, named: str = "") -> list[psutil.Process]:
    """Living processes that a process has started, however indirectly, whose command line has a word."""
    found = []
    try:
        processes = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in processes:
        try:
            if named in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


if __name__ == "__main__":
    step(Path(sys.argv[1]), f"process-{os.getpid()}", **json.loads(sys.argv[2]))
