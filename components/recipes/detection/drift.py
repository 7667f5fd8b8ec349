"""Is a window of requests different from the holdout?

Two kinds of tests complement each other: features one by one see what a camera does (noise, blur, light, JPEG),
embeddings as a whole see what is new in front of it. Each kind has half of the false alarms.
"""

from collections.abc import Callable
from math import ceil

import numpy as np

from ...runtime.artifacts import Drift
from ...runtime.errors import DataError, PlatformError, UserError
from ...statistics.two_sample import chi2_mix, holm, ks, mmd
from .reference import Reference
from .window import Window

CAUTION = 10
"""A reference is a sample too, and one that happens to be unlike the requests rings in window after window. Tests at
α / 10 ring in at most α / 10 of all windows of all references, so that less than one reference in ten can ring in more
than α of its own (Markov's inequality), however few images it has."""
MOST_PERMUTATIONS = 20_000


def compare(reference: Reference, window: Window, alpha: float, detector: str) -> tuple[Drift, ...]:
    """Test a window against the reference.

    Args:
        alpha: False alarms, as a share of the windows without a change: of nearly any reference by itself with
            `ks+mmd`, on average over references with alibi's. Below 0.001 the MMD has too few permutations to ring.
        detector: ks+mmd, alibi-ks or alibi-mmd.

    Returns:
        All tests that were made; the window is different if one of them says `drifted`.

    Raises:
        UserError: There is no such detector, or its package is not installed.
        DataError: One side is empty.
        PlatformError: The two sides are not of one model.
    """
    test = _detector(detector)
    if not window.requests or not len(reference.samples):
        raise DataError(f"{window.requests} requests cannot be compared with {len(reference.samples)} images.")
    sides = [(known.feature_names.tolist(), known.embeddings.shape[1]) for known in (reference, window)]
    if sides[0] != sides[1]:
        described = [f"{len(names)} features and {width} values of embedding" for names, width in sides]
        raise PlatformError(
            f"the reference has {described[0]}, the window {described[1]} or other ones.", "train again"
        )
    return test(reference, window, alpha)


def _detector(name: str) -> Callable[[Reference, Window, float], tuple[Drift, ...]]:
    if name == "ks+mmd":
        return _ks_and_mmd
    if name not in ("alibi-ks", "alibi-mmd"):
        raise UserError(f"{name} is not a detector of drift.", "set detector to ks+mmd, alibi-ks or alibi-mmd")
    from . import alibi

    return alibi.ks if name == "alibi-ks" else alibi.mmd


def _ks_and_mmd(reference: Reference, window: Window, alpha: float) -> tuple[Drift, ...]:
    level = alpha / CAUTION / 2
    names = [(str(name), "ks") for name in reference.feature_names] + [("class mix", "chi2")]
    distances, p = ks(reference.features, window.features)
    mix, p_mix = chi2_mix(reference.class_counts, window.class_counts(reference.class_counts.shape[1]))
    statistics, chances = np.append(distances, mix), np.append(p, p_mix)
    rows = zip(names, statistics.tolist(), chances.tolist(), holm(chances, level).tolist(), strict=True)
    found = [
        Drift(name=name, test=test, statistic=statistic, p_value=chance, drifted=drifted)
        for (name, test), statistic, chance, drifted in rows
    ]
    permutations = min(ceil(1 / level), MOST_PERMUTATIONS)
    apart, chance = mmd(reference.embeddings, window.embeddings, permutations, seed=0)
    return *found, Drift(name="embedding", test="mmd", statistic=apart, p_value=chance, drifted=chance <= level)
