"""Requests to a trained detector, and its answers.

The detector is the demo's, trained once and kept in `build/bench/detector`; answers in `build/bench/traffic`, which is
to be deleted when the scenes change.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from kfp_flywheel.components.recipes.detection.evaluate import score
from kfp_flywheel.components.recipes.detection.features import FEATURES, features
from kfp_flywheel.components.recipes.detection.predict import Detections, Image, PackageConfig, Predictor
from kfp_flywheel.components.recipes.detection.reference import Reference
from kfp_flywheel.components.recipes.detection.window import Window
from kfp_flywheel.components.runtime.artifacts import Blob, Sample

from .figures import BENCH
from .scenes import SIZE, Scene, images

CHUNK = 100
CHUNKS = 100_000
"""A seed's, at most."""
CURVE_FROM = 0.01


class Asked(NamedTuple):
    """Requests and answers, and how good these are: mAP50, over all of them."""

    window: Window
    map50: float


def detector() -> Path:
    """The folder of the demo's package; trained now (two minutes) if it is not there."""
    from kfp_flywheel.components.runtime.artifacts import ModelPackage
    from kfp_flywheel.components.runtime.config import Platform
    from kfp_flywheel.components.runtime.manifests import find
    from kfp_flywheel.components.runtime.packages import fetch_package
    from kfp_flywheel.components.runtime.wiring import connect
    from kfp_flywheel.pipelines import running
    from kfp_flywheel.pipelines.demo import demo, digits

    folder, root = BENCH / "detector", (BENCH / "demo").absolute()
    if not (folder / "config.json").exists():
        data = digits.write(root / "data", {"train": 400, "val": 100, "test": 100})
        platform = Platform.local(root)
        ended = running.run(running.read_parameters(str(data), demo.CONFIG, []), platform, root, 0, quiet=False)
        trained = next(step.artifact for step in ended.run.steps if step.step == "train")
        store = connect(platform).store
        fetch_package(store, find(store, trained, ModelPackage), folder)
    return folder


def labelled(scene: Scene, count: int, seed: int, chunk: int = 0) -> list[tuple[Image, Sample]]:
    """The first images (blue, green, red) of a chunk of a scene, and their labels."""
    nowhere = Blob(uri="", sha256="", size=0)
    return [
        (
            np.ascontiguousarray(image[..., ::-1]),
            Sample(path="", image=nowhere, width=SIZE, height=SIZE, boxes=boxes, split="test", group=""),
        )
        for image, boxes in images(scene, count, seed * CHUNKS + chunk)
    ]


class _Answer(NamedTuple):
    sample: Sample
    all: Detections
    seen: Detections
    features: list[float]


@functools.cache
def _predictor(folder: Path) -> Predictor:
    cv2.setNumThreads(1)
    return Predictor(folder)


def _answers(job: tuple[Path, Scene, int, int]) -> list[_Answer]:
    folder, scene, seed, chunk = job
    predictor = _predictor(folder)
    found = []
    for image, sample in labelled(scene, CHUNK, seed, chunk):
        every = predictor.predict(image, CURVE_FROM)
        keep = every.scores > predictor.config.conf
        seen = replace(every, boxes=every.boxes[keep], scores=every.scores[keep], classes=every.classes[keep])
        found.append(_Answer(sample, every, seen, list(features(image, seen).values())))
    return found


def ask(folder: Path, scenes: dict[str, tuple[Scene, int, int]]) -> dict[str, Asked]:
    """Ask a package about images of many scenes; what was asked before is read from `build/bench/traffic`.

    Args:
        folder: Of the package.
        scenes: By name: what, how many images (a multiple of CHUNK), and the seed.
    """
    names = PackageConfig.read(folder / "config.json").names
    weights = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    paths = {
        name: BENCH / "traffic" / f"{hashlib.sha256(repr((weights, given)).encode()).hexdigest()[:16]}.npz"
        for name, given in scenes.items()
    }
    missing = [name for name, path in paths.items() if not path.exists()]
    (BENCH / "traffic").mkdir(parents=True, exist_ok=True)
    jobs = [
        (folder, scene, seed, at)
        for scene, count, seed in map(scenes.__getitem__, missing)
        for at in range(count // CHUNK)
    ]
    if jobs:
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as workers:
            given = workers.map(_answers, jobs)
            for name in missing:
                answers = [answer for _ in range(scenes[name][1] // CHUNK) for answer in next(given)]
                np.savez(paths[name], **_arrays(answers, names))
    return {name: _asked(path) for name, path in paths.items()}


def _arrays(answers: list[_Answer], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "features": np.array([answer.features for answer in answers], np.float32),
        "scores": np.concatenate([answer.seen.scores for answer in answers]),
        "classes": np.concatenate([answer.seen.classes for answer in answers]),
        "boxes": np.concatenate([answer.seen.boxes for answer in answers]),
        "offsets": np.cumsum([0, *(len(answer.seen) for answer in answers)], dtype=np.int64),
        "embeddings": np.stack([answer.all.embedding for answer in answers]),
        "map50": np.array(
            score([answer.all for answer in answers], [answer.sample for answer in answers], names).map50
        ),
    }


def _asked(path: Path) -> Asked:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    map50 = float(arrays.pop("map50"))
    at = np.arange(len(arrays["features"]), dtype=np.float64)
    return Asked(Window(at=at, feature_names=np.array(FEATURES), **arrays), map50)


def reference_of(window: Window, classes: int) -> Reference:
    """What a package would hold if these requests were its holdout."""
    return Reference(
        samples=np.arange(window.requests).astype(str),
        feature_names=window.feature_names,
        features=window.features,
        scores=window.scores,
        offsets=window.offsets,
        class_counts=window.class_counts(classes),
        embeddings=window.embeddings,
    )


def gather(pieces: Sequence[tuple[Window, Sequence[int]]]) -> Window:
    """Requests of several windows, by their positions."""
    parts = [window.part(at, at + 1) for window, positions in pieces for at in positions]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("at", "features", "scores", "classes", "boxes", "embeddings")
    }
    offsets = np.cumsum([0, *(len(part.scores) for part in parts)])
    return Window(feature_names=parts[0].feature_names, offsets=offsets, **joined)
