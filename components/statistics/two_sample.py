"""Are two samples of the same process? Three tests, and a correction for making many.

Rows are independent units (images). The first two tests are valid for discrete values too, where they are conservative.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float32] | Floats

RARE = 5
"""Classes of which a sample is expected to have fewer are counted as one (Cochran's rule)."""
FEATURES = 256
"""Random ones for a kernel: as many as the power needs."""
BLOCK, CELLS = 250, 4_000_000
"""Permutations at a time, and their rows at most: it limits the memory."""
ENOUGH = 20
"""Permutations that are farther apart than the samples: no more are drawn, since p is no longer small."""


def ks(a: Values, b: Values) -> tuple[Floats, Floats]:
    """Kolmogorov and Smirnov's test, column by column.

    NaN counts as a value below all others: a change in the share of NaN is a change like any other, and columns that
    are nothing but NaN are no exception. p is Kolmogorov's limit for the effective size nm / (n + m); two samples of
    finite size differ by less, so it is an upper bound in the tail (the exact p of 1000 and 50 is 0.68 to 0.83 of it).

    Args:
        a: (n, k).
        b: (m, k).

    Returns:
        Greatest distances of the distribution functions, (k,), and p-values, (k,).
    """
    from scipy.special import kolmogorov

    n, m = len(a), len(b)
    both = np.concatenate([a, b]).astype(np.float64)
    both[np.isnan(both)] = -np.inf
    order = np.argsort(both, axis=0)
    ordered = np.take_along_axis(both, order, 0)
    apart = np.abs(np.where(order < n, 1 / n, -1 / m).cumsum(0))
    apart[:-1][ordered[1:] == ordered[:-1]] = 0.0  # a step ends at the last of equal values
    statistic = apart.max(0)
    return statistic, np.asarray(kolmogorov(np.sqrt(n * m / (n + m)) * statistic))


def chi2_mix(a: Counts, b: Counts) -> tuple[float, float]:
    """Does the mix of classes differ, however many there are of them?

    Pearson's χ² of the proportions, with Rao and Scott's second-order correction for counts that come in clusters ("On
    Chi-Squared Tests for Multiway Contingency Tables with Cell Proportions Estimated from Survey Data", Annals of
    Statistics 12 (1984), 46-60): boxes of one image are not independent, images are. The statistic is scaled to the
    first two moments that it has if images of both samples are alike.

    Args:
        a: (n, classes): how many of each class an image has.
        b: (m, classes).

    Returns:
        The corrected statistic, and its p-value; 0 and 1 where there are no two mixes to compare.
    """
    from scipy.special import chdtrc

    n, m = len(a), len(b)
    both = np.concatenate([a, b]).astype(np.float64)
    rare = both.sum(0) * min(n, m) / (n + m) < RARE
    both = np.column_stack([both[:, ~rare], both[:, rare].sum(1)])
    both = both[:, both.any(0)]
    size, of_a, of_b = both.sum(1), both[:n].sum(0), both[n:].sum(0)
    if both.shape[1] < 2 or not of_a.any() or not of_b.any():
        return 0.0, 1.0
    mix = both.sum(0) / size.sum()
    residual = both - size[:, None] * mix
    spread = residual.T @ residual / (n + m - 1) * (1 / n + 1 / m) / size.mean() ** 2 / mix[:, None]
    mean, square = np.trace(spread), float((spread * spread.T).sum())
    if square < 1e-16:  # every image has the same mix, but for rounding
        return 0.0, 1.0
    apart = float(((of_a / of_a.sum() - of_b / of_b.sum()) ** 2 / mix).sum())
    statistic = apart * mean / square
    return float(statistic), float(chdtrc(mean**2 / square, statistic))


def mmd(a: Values, b: Values, permutations: int, seed: int) -> tuple[float, float]:
    """Maximum mean discrepancy of whole rows (Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012), 723-773).

    The kernel is a Gaussian on columns that are standardised over both samples, as wide as two rows are apart on
    average; random features stand for it (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS
    2007), so that no matrix of all rows with all others is made. They make a kernel themselves, and nothing here
    depends on which row is of which sample: permuting the rows gives an exact p-value.

    Args:
        a: (n, d).
        b: (m, d).
        permutations: p is at least 1 / (permutations + 1).
        seed: The same seed gives the same p-value.

    Returns:
        The squared discrepancy (biased estimate), and its p-value: exact below ENOUGH / (permutations + 1), where all
        permutations are drawn, and rougher above.
    """
    n, m = len(a), len(b)
    both, rng = standardised(np.concatenate([a, b])), np.random.default_rng(seed)
    directions = rng.standard_normal((both.shape[1], FEATURES), np.float32) / np.sqrt((both * both).sum(1).mean() or 1)
    features = np.cos(both @ directions + rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32))
    features -= features.mean(0)
    scale = 2 / FEATURES * (1 / n + 1 / m) ** 2

    def discrepancy(chosen: npt.NDArray[np.float32]) -> Floats:
        return np.asarray(((chosen @ features).astype(np.float64) ** 2).sum(-1) * scale)

    of_b = np.repeat(np.array([0, 1], np.float32), [n, m])
    statistic = float(discrepancy(of_b))
    at_least = done = 0
    while done < permutations and at_least < ENOUGH:
        block = min(BLOCK, max(CELLS // (n + m), 1), permutations - done)
        drawn = rng.permuted(np.tile(of_b, (block, 1)), axis=1)
        # What is equal but for rounding counts as equal.
        at_least += int(np.count_nonzero(discrepancy(drawn) >= statistic * (1 - 1e-5)))
        done += block
    return statistic, (1 + at_least) / (1 + done)


def standardised(values: Values) -> npt.NDArray[np.float32]:
    """Columns with mean 0 and standard deviation 1; constant ones are 0."""
    spread = values.std(0, dtype=np.float64)
    centred = (values - values.mean(0, dtype=np.float64)) / np.where(spread > 0, spread, 1)
    return np.asarray(np.where(spread > 0, centred, 0), np.float32)


def holm(p: Values, alpha: float) -> Bools:
    """Which hypotheses to reject, so that a true one is among them with a chance of at most `alpha`.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6
    (1979), 65-70. The tests may depend on one another in any way.
    """
    order = np.argsort(p, kind="stable")
    passed = p.astype(np.float64)[order] <= alpha / np.arange(len(p), 0, -1)
    rejected = np.zeros(len(p), bool)
    rejected[order] = np.logical_and.accumulate(passed)
    return rejected
