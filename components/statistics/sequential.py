"""Is a canary worse than the stable beside it? Evidence that may be looked at after every batch of requests.

Each function gives an e-process E: under its null hypothesis the chance that E ever reaches 1 / α
is at most α, however often one looks and whenever one stops (Ville's inequality; Ramdas, Grünwald, Vovk and Shafer,
"Game-Theoretic Statistics and Safe Anytime-Valid Inference", Statistical Science 38 (2023), 576-601). It asks for
requests that fail independently of one another: what fails together has to be counted once.

Nothing is kept between looks: who was killed computes the same again from the looks that were written down.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RATIOS = {1.5: 1, 2.0: 1, 3.0: 1, 5.0: 1, 10.0: 2, 30.0: 4, 100.0: 5, 1000.0: 1}
"""How many times as often a bad canary may fail, and the weight of each. The extremes weigh more: two failures of a
release that is broken are to be enough."""
SLOW_RATIOS = {1.3: 1, 1.5: 1, 2.0: 1, 3.0: 1, 5.0: 1, 10.0: 1}
"""The same for slow answers, of which the stable has some too."""
BETS = np.array([0.1, 0.2, 0.4, 0.8])
"""Shares of the evidence that are put on the next pair; each has the same weight."""
STEPS = 60
"""Halvings of an interval of at most 1: to below the precision of a float."""


@dataclass(frozen=True)
class Looks:
    """What was counted at each look since the one before. All arrays have the shape (..., looks).

    Args:
        canary: Requests that were assigned to the canary.
        canary_bad: Those among them that were bad: an error, or slower than a bound.
        stable: Requests that were assigned to the stable.
        stable_bad: Those among them that were bad.
        share: The chance of a request to be assigned to the canary, or more, if that is known. Without it, it is taken
            from each look's own counts, which wastes what a look of few requests could tell.
    """

    canary: Counts
    canary_bad: Counts
    stable: Counts
    stable_bad: Counts
    share: Floats | None = None


def harm(looks: Looks, tolerated: float = 1.0, ratios: Mapping[float, int] = RATIOS) -> Floats:
    """Evidence against "the canary is bad at most `tolerated` times as often as the stable"; shape (..., looks).

    Given that a request was bad, whose was it? At equal rates it is the canary's with the chance of its share of the
    requests; at r times the rate, more often. E is the likelihood ratio of the bad ones, averaged over r (the idea of
    Lindon and Malek, arXiv:2011.03567). Without any bad request E stays 1.

    Args:
        tolerated: Ratio of the rates that is no harm yet, at least 1.
        ratios: How many times as often as is tolerated, and the weight of each.
    """
    requests = looks.canary + looks.stable
    counted = np.divide(looks.canary, requests, out=np.zeros(requests.shape), where=requests > 0)
    share = (counted if looks.share is None else looks.share)[..., None, :]
    bad = (looks.canary_bad + looks.stable_bad)[..., None, :]
    times, weights = (np.array(column)[:, None] for column in zip(*ratios.items(), strict=True))
    gained = looks.canary_bad[..., None, :] * np.log(times)
    gained = gained - bad * (np.log1p(share * (times * tolerated - 1)) - np.log1p(share * (tolerated - 1)))
    total = np.cumsum(gained, axis=-1) + np.log(weights / weights.sum())
    return _exp(np.logaddexp.reduce(total, axis=-2))


def non_inferiority(looks: Looks, margin: float) -> Floats:
    """Evidence against "the canary is bad more often than the stable, by `margin` or more"; shape (..., looks).

    Each look is a likelihood ratio: the rates that the earlier looks suggest, the same for both arms, against those
    rates with the margin between them that come closest to them, which makes it an e-variable (Turner, Ly and Grünwald,
    "Generic E-Variables for Exact Sequential k-Sample Tests That Allow for Optional Stopping", Journal of Statistical
    Planning and Inference 230 (2024)).

    Args:
        margin: Difference of the rates that is still allowed, between 0 and 1.
    """
    requests = looks.canary + looks.stable
    bad = looks.canary_bad + looks.stable_bad
    before, bad_before = np.cumsum(requests, axis=-1) - requests, np.cumsum(bad, axis=-1) - bad
    rate = (bad_before + 0.5) / (before + 1 / margin)  # before anything is known, half the margin
    stable = _closest(rate, looks.canary, looks.stable, margin)
    gained = _log_ratio(looks.canary, looks.canary_bad, rate, stable + margin)
    gained = gained + _log_ratio(looks.stable, looks.stable_bad, rate, stable)
    return _exp(np.cumsum(gained, axis=-1))


def loss(differences: Floats) -> Floats:
    """Evidence against "the canary is no worse on average", from pairs that are asked one after another.

    A gambler puts a share of what he has on each pair's being worse, and wins or loses in proportion; E is what he has
    of 1, averaged over BETS (Waudby-Smith and Ramdas, "Estimating Means of Bounded Random Variables by Betting",
    Journal of the Royal Statistical Society B 86 (2024), 1-27).

    Args:
        differences: Of the canary's score less the stable's on the same question, between -1 and 1; (..., pairs).

    Returns:
        E after each pair, (..., pairs).
    """
    wins = np.log1p(-BETS[:, None] * np.asarray(differences, dtype=np.float64)[..., None, :])
    return _exp(np.logaddexp.reduce(np.cumsum(wins, axis=-1), axis=-2) - np.log(len(BETS)))


def _exp(log: Floats) -> Floats:
    """Nobody asks how far beyond 10²⁰⁰ evidence goes."""
    return np.asarray(np.exp(np.minimum(log, 460.0)))


def _closest(rate: Floats, canary: Counts, stable: Counts, margin: float) -> Floats:
    """The stable's rate p in the null hypothesis (p + margin, p) with the least divergence from (rate, rate).

    The divergence is convex in p, so its slope has one root, which is between rate - margin and rate.
    """
    low, high = np.maximum(rate - margin, 0.0), np.minimum(rate, 1 - margin)
    for _ in range(STEPS):
        p = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = canary * (p + margin - rate) / ((p + margin) * (1 - p - margin))
            slope = slope + stable * (p - rate) / (p * (1 - p))
        rising = slope > 0
        low, high = np.where(rising, low, p), np.where(rising, p, high)
    return np.asarray((low + high) / 2)


def _log_ratio(requests: Counts, bad: Counts, rate: Floats, null: Floats) -> Floats:
    """Logarithm of the likelihood of `bad` out of `requests` at one rate over that at another."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of_bad = np.where(bad > 0, bad * np.log(rate / null), 0.0)
        of_good = np.where(requests > bad, (requests - bad) * (np.log1p(-rate) - np.log1p(-null)), 0.0)
    return np.asarray(of_bad + of_good)
