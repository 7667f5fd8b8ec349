"""Confidence bounds for a statistic of a sample by resampling it, that hold for rare losses too.

The bounds are percentiles of the statistic over resamples (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993). Resampling knows nothing of what the sample happens to lack: where one unit in a hundred is a disaster, most
samples of thirty have none, and their bounds are blind to it. So one imagined unit can be resampled along with the
others; for a sample without any loss that gives the rule of three: at most 3 / n after n units (Hanley and
Lippman-Hand, "If Nothing Goes Wrong, Is Everything All Right?", JAMA 249 (1983), 1743-1745).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bounds:
    """A statistic of the sample, and what it is at least and at most.

    Each bound holds by itself at `level` (one-sided): together they enclose the statistic at 2 · level - 1.
    """

    estimate: float
    lower: float
    upper: float
    level: float


def bounds(
    statistic: Callable[[Counts], Floats],
    units: int,
    *,
    unseen: float = 0.0,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    batch: int = 50,
) -> Bounds:
    """Bound a statistic from below and from above.

    A comparison is paired when the statistic is a difference and both of its sides are given the same counts.

    Args:
        statistic: Takes how often each unit is there, shape (batch, units), and gives one value a row. NaN where it is
            not defined; such resamples are left out, which makes the bounds conditional on its being defined.
        units: Number of independent units (images, or groups of images).
        unseen: What the imagined unit adds to the statistic as if that were a mean over units: less of it for the lower
            bound, more for the upper one. 0 is the plain bootstrap.
        level: Of each one-sided bound, between 0.5 and 1.
        resamples: Bootstrap samples; the error of the bound's own level is about sqrt(level · (1 - level) / resamples).
        seed: The same seed gives the same bounds.
        batch: Rows that the statistic is given at once; it limits the memory and does not change the bounds.

    Raises:
        ValueError: The statistic is not defined for the sample, or for most of its resamples.
    """
    estimate = float(statistic(np.ones((1, units), dtype=np.int64))[0])
    rng = np.random.default_rng(seed)
    all_units = units + (1 if unseen else 0)
    chances = np.append(np.full(units, 1 / all_units), 1 / all_units if unseen else 0.0)
    sizes = [min(batch, resamples - start) for start in range(0, resamples, batch)]
    draws = [rng.multinomial(all_units, chances, size=size) for size in sizes]
    value = np.concatenate([statistic(drawn[:, :-1]) for drawn in draws])
    share = np.concatenate([drawn[:, -1] for drawn in draws]) / all_units
    defined = ~np.isnan(value)
    if np.isnan(estimate) or np.count_nonzero(defined) < resamples / 2:
        raise ValueError("the statistic is not defined for the sample, or for most of its resamples")
    value, share = value[defined], share[defined]
    lower = np.quantile((1 - share) * value - share * unseen, 1 - level)
    upper = np.quantile((1 - share) * value + share * unseen, level)
    return Bounds(estimate, float(lower), float(upper), level)
