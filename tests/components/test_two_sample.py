"""Two-sample tests: no more false alarms than they say, on the awkward data that they are for, and what they find."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.statistics.two_sample import chi2_mix, holm, ks, mmd
from scipy import stats

LEVELS = (0.01, 0.05, 0.1)


def alarms(p_values: list[float], slack: float = 1.0) -> None:
    """As many p-values lie below each level as may by chance (with a chance of 1e-4 that this fails)."""
    for level in LEVELS:
        below = sum(p <= level for p in p_values)
        assert below <= stats.binom.ppf(1 - 1e-4, len(p_values), slack * level), level


def scattered(rng: np.random.Generator, count: int) -> np.ndarray:
    """Smooth, coarse, mostly absent and never present values."""
    smooth = rng.standard_normal(count)
    return np.column_stack(
        [
            smooth,
            rng.poisson(2, count),
            np.where(rng.random(count) < 0.7, np.nan, smooth),
            np.full(count, np.nan),
            np.zeros(count),
        ]
    ).astype(np.float32)


VALUES = st.lists(st.integers(-3, 3), min_size=1, max_size=25)


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES)
def test_the_distance_is_the_greatest_between_the_distribution_functions(a: list[int], b: list[int]) -> None:
    statistic, _ = ks(np.array([a], np.float32).T, np.array([b], np.float32).T)
    apart = [abs(np.mean(np.array(a) <= value) - np.mean(np.array(b) <= value)) for value in range(-3, 4)]
    assert statistic[0] == pytest.approx(max(apart))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.integers(2, 200), st.floats(0, 4), st.integers(0, 2**31))
def test_p_is_at_least_the_exact_one_where_it_matters(n: int, m: int, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal(n), rng.standard_normal(m) + shift
    p = ks(a[:, None], b[:, None])[1][0]
    if p <= 0.05:
        assert p >= stats.ks_2samp(a, b, method="exact").pvalue * (1 - 1e-9)


@pytest.mark.parametrize(("n", "m"), [(100, 20), (30, 200), (1, 5)])
def test_ks_rings_no_more_often_than_it_says(n: int, m: int) -> None:
    rng = np.random.default_rng(1)
    p_values = np.array([ks(scattered(rng, n), scattered(rng, m))[1] for _ in range(1500)])
    for column in p_values.T:
        alarms(column.tolist())
    assert (p_values[:, 3:] == 1).all()


def test_values_that_go_missing_are_a_change() -> None:
    rng = np.random.default_rng(2)
    before = scattered(rng, 300)
    gone = before[:50].copy()
    gone[:] = np.nan
    statistic, p = ks(before, gone)
    assert statistic.tolist() == pytest.approx([1, 1, 1 - np.isnan(before[:, 2]).mean(), 0, 1])
    assert (p[[0, 1, 4]] < 1e-20).all()
    assert p[2] < 0.001
    some = before[:100].copy()
    some[:25, 0] = np.nan
    assert ks(before, some)[1][0] < 0.01
    assert ks(some, before)[1][0] == pytest.approx(ks(before, some)[1][0])


def crowds(rng: np.random.Generator, count: int, mix: np.ndarray) -> np.ndarray:
    """Images with many or no boxes, most of an image's boxes of one class."""
    drawn = [rng.multinomial(rng.poisson(4), rng.dirichlet(0.5 * mix * len(mix))) for _ in range(count)]
    return np.array(drawn, np.int64)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """What one would do who takes boxes for independent."""
    table = np.stack([a.sum(0), b.sum(0)])
    return float(stats.chi2_contingency(table[:, table.any(0)], correction=False).pvalue)


@pytest.mark.parametrize(("n", "m", "classes"), [(100, 50, 4), (300, 60, 10), (100, 40, 60)])
def test_the_mix_of_boxes_that_come_in_crowds_rings_no_more_often_than_it_says(n: int, m: int, classes: int) -> None:
    rng = np.random.default_rng(classes)
    mix = rng.dirichlet(np.ones(classes))
    pool = crowds(rng, 5000, mix)
    pairs = [(pool[rng.integers(5000, size=n)], pool[rng.integers(5000, size=m)]) for _ in range(1000)]
    alarms([chi2_mix(a, b)[1] for a, b in pairs], slack=1.3)
    assert np.mean([pearson(a, b) <= 0.05 for a, b in pairs]) > 0.08


def test_the_mix_is_a_matter_of_proportions() -> None:
    rng = np.random.default_rng(4)
    even, skewed = np.full(5, 0.2), np.array([0.5, 0.3, 0.2, 0, 0])
    before = crowds(rng, 500, even)
    assert chi2_mix(before, crowds(rng, 150, skewed + 1e-9))[1] < 1e-4
    assert chi2_mix(before, 3 * crowds(rng, 150, even))[1] > 0.01
    nothing = np.zeros((50, 5), np.int64)
    assert chi2_mix(before, nothing) == (0.0, 1.0)
    assert chi2_mix(nothing, nothing) == (0.0, 1.0)
    assert chi2_mix(before[:, :1], before[:20, :1]) == (0.0, 1.0)


def rows(rng: np.random.Generator, count: int, correlation: float = 0.0, columns: int = 6) -> np.ndarray:
    covariance = np.full((columns, columns), correlation) + (1 - correlation) * np.eye(columns)
    return rng.multivariate_normal(np.zeros(columns), covariance, count).astype(np.float32)


@pytest.mark.parametrize(("n", "m"), [(60, 20), (20, 60)])
def test_the_discrepancy_rings_no_more_often_than_it_says(n: int, m: int) -> None:
    rng = np.random.default_rng(5)
    alarms([mmd(rows(rng, n, 0.5), rows(rng, m, 0.5), 99, seed)[1] for seed in range(800)])


def test_the_discrepancy_sees_what_no_column_shows() -> None:
    rng = np.random.default_rng(8)
    before, now = rows(rng, 400), rows(rng, 200, 0.8)
    assert ks(before, now)[1].min() > 0.01
    apart, p = mmd(before, now, 999, 0)  # in several blocks
    assert p == pytest.approx(0.001)
    assert mmd(before, now, 999, 0) == (apart, p)
    assert mmd(before, rows(rng, 200), 999, 0)[1] > 0.01
    scale = np.array([1e-6, 1, 1e6, 1, 1, 1], np.float32)
    assert mmd(before * scale, now * scale, 999, 0)[1] == pytest.approx(0.001)


def test_rows_that_are_all_alike_are_no_discrepancy() -> None:
    for n, m in ((30, 10), (1, 1)):
        assert mmd(np.ones((n, 4), np.float32), np.ones((m, 4), np.float32), 99, 0) == (pytest.approx(0, abs=1e-9), 1.0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_step_by_step(p: list[float], alpha: float) -> None:
    rejected, expected = holm(np.array(p), alpha), np.zeros(len(p), bool)
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[index] > alpha / (len(p) - rank):
            break
        expected[index] = True
    assert rejected.tolist() == expected.tolist()


def test_holm_is_wrong_about_nothing_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    p = rng.random((4000, 8))
    p[:, :3] *= 1e-6  # these are not true
    wrong = [bool(holm(row, 0.05)[3:].any()) for row in p]
    assert np.mean([holm(row, 0.05)[:3].all() for row in p]) == 1.0
    assert 0.03 < np.mean(wrong) <= stats.binom.ppf(1 - 1e-4, len(wrong), 0.05) / len(wrong)
