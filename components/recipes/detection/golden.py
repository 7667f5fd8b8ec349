"""Golden inputs: images with the detections that the trainer's own framework gave, which a server must reproduce."""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import Corrupt, PlatformError
from .predict import Detections, Floats, PackageConfig, Predictor, decode, postprocess

MIN_IOU = 0.99
SCORE_TOLERANCE = 1e-3
CORNER_TOLERANCE = 0.02
"""Pixels. A box that the image's border cuts to a sliver has no stable IoU; its corners must agree instead."""
EMBEDDING_TOLERANCE = 1e-3
NOISE_SCORE, NOISE_PIXELS, DRAWS, TRIES = 2e-4, 0.02, 3, 20
"""Ten times what ONNX Runtime and torch differ by, and less than the tolerances."""


@dataclass(frozen=True)
class Case:
    """One golden image, encoded, and what must be seen in it with scores above `conf`."""

    image: bytes
    conf: float
    expected: Detections


def check(predictor: Predictor, folder: Path) -> None:
    """Refuse a package that does not do what its trainer saw it do.

    Args:
        predictor: The package as it is served.
        folder: Holds golden.npz.

    Raises:
        PlatformError: Names the first image and detection that is not reproduced.
    """
    cases = read(folder / "golden.npz")
    for number, case in enumerate(cases, 1):
        seen = predictor.predict(decode(case.image), conf=case.conf)
        problem = difference(case.expected, seen, predictor.config.names)
        if problem:
            raise PlatformError(
                f"golden image {number} of {len(cases)} is not reproduced: {problem}.",
                "use the package as it was trained, on the ONNX Runtime of its image; or train again",
            )


def tolerance(score: float) -> float:
    """How far a score may be off: 1e-3, and less for a weak model's scores, of which 1e-3 may be all there is."""
    return min(SCORE_TOLERANCE, 0.01 * score)


def difference(expected: Detections, seen: Detections, names: Sequence[str]) -> str | None:
    """Compare detections one to one, in any order.

    Each must have a partner of the same class, with an IoU of 0.99 and a score within `tolerance`; the embeddings may
    differ by a thousandth of their length.

    Returns:
        The first difference, as a part of a sentence; none if they agree.
    """
    if expected.embedding.shape != seen.embedding.shape:
        return f"the embedding has {seen.embedding.size} values instead of {expected.embedding.size}"
    overlaps = _iou(expected.boxes, seen.boxes)
    near = np.abs(expected.boxes[:, None] - seen.boxes[None]).max(2) <= CORNER_TOLERANCE
    alike = ((overlaps >= MIN_IOU) | near) & (expected.classes[:, None] == seen.classes[None])
    free = np.ones(len(seen), bool)
    for number, score in enumerate(expected.scores):
        what = f"detection {number + 1} ({names[expected.classes[number]]}, score {score:.4f})"
        partners = np.flatnonzero(alike[number] & free)
        if not len(partners):
            best = overlaps[number].max(initial=0)
            return f"{what} is missing: the nearest box has an IoU of {best:.4f}, or another class"
        partner = partners[np.abs(seen.scores[partners] - score).argmin()]
        if not abs(float(seen.scores[partner]) - float(score)) <= tolerance(float(score)):
            return f"{what} has a score of {seen.scores[partner]:.4f}"
        free[partner] = False
    if free.any():
        extra = int(np.flatnonzero(free)[0])
        return f"there is a detection too many ({names[seen.classes[extra]]}, score {seen.scores[extra]:.4f})"
    length = float(np.linalg.norm(expected.embedding))
    off = float(np.linalg.norm(seen.embedding - expected.embedding))
    if not off <= EMBEDDING_TOLERANCE * length:
        return f"the embedding is off by {off:.3g}, and its length is {length:.3g}"
    return None


def _iou(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Boxes (n, 4) and (m, 4) → (n, m); two empty boxes do not overlap."""
    first, second = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    inner = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = inner.clip(0).prod(-1)
    union = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - common
    overlaps: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlaps


def diverse(embeddings: Floats, counts: NDArray[np.int64], limit: int) -> list[int]:
    """Choose images that differ: the one with the most detections, then always the one farthest from those chosen.

    Args:
        embeddings: (n, d), compared by their standardised dimensions.
        counts: (n,): detections of each image.
        limit: Images to choose at most.

    Returns:
        Positions of the images.
    """
    spread = embeddings.std(0)
    points = (embeddings - embeddings.mean(0)) / np.where(spread > 0, spread, 1)
    chosen = [int(counts.argmax())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < min(limit, len(points)):
        distance[chosen[-1]] = -1
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def clearest(cases: Iterable[Case], limit: int) -> list[Case]:
    """The first cases that ask for detections; those that ask for the embedding only, when there are not enough."""
    asking: list[Case] = []
    silent: list[Case] = []
    for case in cases:
        (asking if case.conf < 1 else silent).append(case)
        if len(asking) == limit:
            break
    return (asking + silent)[:limit]


def clear_conf(raw: Floats, config: PackageConfig) -> float:
    """Find the score limit at which an image is a fair question: no rounding error can change the answer.

    It lies in the middle of a gap between two scores that is wider than twice the tolerance, so that no detection can
    pass it; and the detections above it stay the same under noise on boxes and scores, so that no two of them are so
    close that suppression might prefer the other. Of such limits it is the one nearest to the package's own with four
    detections or more, else with one or more. A weak model's limit is therefore low: its golden images still ask
    something.

    Args:
        raw: (4 + classes, n): the trainer's raw output for one image.

    Returns:
        The limit; 1 if there is none, so that only the embedding is compared.
    """
    rng = np.random.default_rng(0)
    plain = _all(raw, config)
    noisy = []
    for _ in range(DRAWS):
        drawn = raw.copy()
        drawn[:4] += rng.uniform(-NOISE_PIXELS, NOISE_PIXELS, drawn[:4].shape).astype(np.float32)
        drawn[4:] *= 1 + rng.uniform(-NOISE_SCORE, NOISE_SCORE, drawn[4:].shape).astype(np.float32)
        noisy.append(_all(drawn, config))
    scores = plain.scores[: config.max_det - 1].astype(np.float64)
    middles = (scores[:-1] + scores[1:]) / 2
    wide = [k for k in range(1, len(scores)) if scores[k - 1] - scores[k] > 2 * tolerance(float(scores[k - 1]))]
    for k in sorted(wide, key=lambda k: (k < 4, abs(middles[k - 1] - config.conf)))[:TRIES]:
        conf = float(np.float32(middles[k - 1]))
        if all(difference(_above(plain, conf), _above(drawn, conf), config.names) is None for drawn in noisy):
            return conf
    return 1.0


def _all(raw: Floats, config: PackageConfig) -> Detections:
    return Detections(*postprocess(raw, config, 0.0), np.zeros(0, np.float32))


def _above(found: Detections, conf: float) -> Detections:
    keep = found.scores > conf
    return Detections(found.boxes[keep], found.scores[keep], found.classes[keep], found.embedding)


def write(path: Path, cases: Sequence[Case]) -> None:
    """Write golden.npz; the same cases give the same bytes."""
    images = [np.frombuffer(case.image, np.uint8) for case in cases]
    np.savez(
        path,
        images=np.concatenate(images),
        image_offsets=np.cumsum([0, *map(len, images)], dtype=np.int64),
        conf=np.array([case.conf for case in cases], np.float32),
        boxes=np.concatenate([case.expected.boxes for case in cases]),
        scores=np.concatenate([case.expected.scores for case in cases]),
        classes=np.concatenate([case.expected.classes for case in cases]),
        offsets=np.cumsum([0, *(len(case.expected) for case in cases)], dtype=np.int64),
        embeddings=np.stack([case.expected.embedding for case in cases]),
    )


def read(path: Path) -> list[Case]:
    """Read golden.npz.

    Raises:
        Corrupt: It is missing, damaged, or holds no case.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            data = {name: stored[name] for name in stored.files}
        starts, ends = data["offsets"][:-1], data["offsets"][1:]
        cases = [
            Case(
                data["images"][data["image_offsets"][i] : data["image_offsets"][i + 1]].tobytes(),
                float(data["conf"][i]),
                Detections(data["boxes"][a:b], data["scores"][a:b], data["classes"][a:b], data["embeddings"][i]),
            )
            for i, (a, b) in enumerate(zip(starts, ends, strict=True))
        ]
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise Corrupt(f"{path} does not hold golden inputs: {error}.") from error
    if not cases:
        raise Corrupt(f"{path} holds no golden inputs.")
    return cases
