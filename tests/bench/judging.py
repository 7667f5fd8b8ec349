"""Windows of requests of many scenes, judged as the monitor judges them."""

import functools
import hashlib
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from kfp_flywheel.components.recipes.detection import corruptions, harm
from kfp_flywheel.components.recipes.detection.drift import compare
from kfp_flywheel.components.recipes.detection.predict import PackageConfig, Predictor
from kfp_flywheel.components.recipes.detection.reference import Reference
from kfp_flywheel.components.recipes.detection.window import Window

from .figures import BENCH
from .scenes import Scene
from .traffic import Asked, ask, detector, gather, labelled, reference_of

ALPHA = 0.01
DROPS = (0.03, 0.04, 0.05, 0.06, 0.07)
TWELVE = (
    *("gaussian_noise", "shot_noise", "defocus_blur", "motion_blur", "snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The package's common corruptions without impulse_noise (much like shot_noise), glass_blur and zoom_blur (slow)."""
CONTENT = {
    "classes 0 to 4 only": Scene(classes=(0, 1, 2, 3, 4)),
    "boxes × 0.6": Scene(extent=0.6),
    "unseen photographs": Scene(split="val"),
}
FEWER = {"fewer objects (2 at most)": Scene(most=2)}
WINDOWS, WINDOW, POOL, LARGE, SMALL = 200, 200, 400, 1000, 100
CLEAN, REFERENCES, POOLS, OURS = 1, range(100, 105), range(2, 7), 7
"""Seeds."""


@functools.cache
def scenes() -> dict[str, tuple[Scene, int, int]]:
    """All that is asked: what, how many images, and the seed. Each pool has a clean one of the same seed."""
    asked = {"clean": (Scene(), WINDOWS * WINDOW, CLEAN)}
    asked |= {f"reference {seed}": (Scene(), LARGE, seed) for seed in REFERENCES}
    asked |= {f"base {seed}": (Scene(), POOL, seed) for seed in (*POOLS, OURS)}
    for number, name in enumerate(TWELVE):
        for severity in range(1, 6):
            seed = POOLS[(number + severity) % len(POOLS)]
            asked[f"{name} {severity}"] = (Scene(corruption=name, severity=severity), POOL, seed)
    for name in corruptions.CORRUPTIONS:
        for severity in range(1, 4):
            asked[f"our {name} {severity}"] = (Scene(corruption=f"our {name}", severity=severity), POOL, OURS)
    return asked | {name: (scene, POOL, POOLS[0]) for name, scene in (CONTENT | FEWER).items()}


class Job(NamedTuple):
    """A window, gathered from pools, and what to hold it against: some images of a reference."""

    reference: int
    images: tuple[int, int]
    pieces: tuple[tuple[str, Sequence[int]], ...]


class Judged(NamedTuple):
    """What the monitor finds in a window: the tests that ring, and the harm; `hurts` at each of DROPS."""

    rung: frozenset[str]
    loss: float
    confidence_drop: float
    hurts: tuple[bool, ...]


@functools.cache
def pools() -> dict[str, Asked]:
    return ask(detector(), scenes())


@functools.cache
def reference(seed: int, first: int, last: int) -> Reference:
    classes = len(PackageConfig.read(detector() / "config.json").names)
    return reference_of(pools()[f"reference {seed}"].window.part(first, last), classes)


@functools.cache
def estimator(seed: int) -> harm.Estimator:
    """Calibrated on the first hundred images of a reference, of which the labels are known."""
    weights = hashlib.sha256((detector() / "model.onnx").read_bytes()).hexdigest()[:16]
    path = BENCH / "traffic" / f"{weights}-{seed}.json"
    if not path.exists():
        path.write_bytes(harm.calibrate(Predictor(detector()), labelled(Scene(), 100, seed)).to_json())
    return harm.Estimator.from_json(path.read_bytes(), str(path))


def _window(job: Job) -> Window:
    (name, positions), *others = job.pieces
    if isinstance(positions, range) and not others:
        return pools()[name].window.part(positions.start, positions.stop)
    return gather([(pools()[name].window, positions) for name, positions in job.pieces])


def _judge(job: Job) -> Judged:
    known, now, worth = reference(job.reference, *job.images), _window(job), estimator(job.reference)
    return Judged(
        frozenset(f"{test.name} ({test.test})" for test in compare(known, now, ALPHA, "ks+mmd") if test.drifted),
        harm.estimate(worth, known, now) or 0.0,
        harm.confidence_drop(known, now) or 0.0,
        tuple(harm.hurts(worth, known, [now], drop) for drop in DROPS),
    )


class Judge:
    """Judges on all cores."""

    def __init__(self, workers: ProcessPoolExecutor) -> None:
        self.workers = workers

    def __call__(self, jobs: Iterable[Job]) -> list[Judged]:
        return list(self.workers.map(_judge, jobs, chunksize=10))


@contextmanager
def judge() -> Iterator[Judge]:
    """All that can be kept is made before: workers only read it."""
    pools()
    for seed in REFERENCES:
        estimator(seed)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        yield Judge(workers)


def rung(judged: Iterable[Judged]) -> float:
    """The share of windows that ring."""
    return statistics.mean(bool(seen.rung) for seen in judged)
