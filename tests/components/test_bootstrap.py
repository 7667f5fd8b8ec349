"""Bounds that hold as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.statistics.bootstrap import bounds

numbers = st.lists(st.floats(-100, 100, allow_nan=False), min_size=3, max_size=30)


def mean_of(values):
    values = np.asarray(values)
    return lambda counts: counts @ values / counts.sum(axis=1)


@pytest.mark.parametrize("draw", ["exponential", "lognormal"])
def test_without_an_imagined_unit_it_is_scipys_percentile_bootstrap(draw):
    from scipy import stats

    values = getattr(np.random.default_rng(1), draw)(size=40)
    ours = bounds(mean_of(values), 40, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", random_state=0
    )
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.lower == pytest.approx(theirs.confidence_interval.low, abs=0.06 * theirs.standard_error)
    assert ours.upper == pytest.approx(theirs.confidence_interval.high, abs=0.06 * theirs.standard_error)


@pytest.mark.parametrize("units", [30, 100])
def test_after_a_sample_without_a_loss_it_is_the_rule_of_three(units):
    found = bounds(lambda counts: np.zeros(len(counts)), units, unseen=1.0)
    assert found.lower == pytest.approx(-3 / (units + 1))
    assert found.upper == pytest.approx(3 / (units + 1))


def share_of_samples_whose_bounds_hold(draw, truth, units, unseen, count=500):
    held = {"lower": 0, "upper": 0}
    for seed in range(count):
        values = draw(np.random.default_rng([units, seed]), units)
        found = bounds(mean_of(values), units, unseen=unseen, resamples=500, seed=seed, batch=500)
        held["lower"] += found.lower <= truth
        held["upper"] += found.upper >= truth
    return held["lower"] / count, held["upper"] / count


def pairs(rng, units):
    """A difference of pairs that are as hard for both; its mean is 0.2."""
    hard = rng.exponential(size=units)
    return (hard + rng.exponential(size=units)) - (hard + rng.exponential(size=units)) + 0.2


def rare(rng, units):
    """One unit in 33 is lost altogether."""
    return -(rng.random(units) < 0.03).astype(float)


@pytest.mark.parametrize("units", [20, 60])
def test_each_bound_holds_about_as_often_as_it_says(units):
    """0.95 of 500 samples has a standard error of 0.01."""
    assert all(0.91 <= held <= 0.98 for held in share_of_samples_whose_bounds_hold(pairs, 0.2, units, 0.0))


def test_a_rare_loss_is_not_ruled_out_by_a_sample_that_has_none():
    assert share_of_samples_whose_bounds_hold(rare, -0.03, 30, unseen=0.0)[0] < 0.7
    assert share_of_samples_whose_bounds_hold(rare, -0.03, 30, unseen=1.0)[0] >= 0.94


def test_a_paired_comparison_is_sharper_than_its_sides():
    rng = np.random.default_rng(0)
    hard, gain = rng.normal(0, 3, size=200), 0.1 + rng.normal(0, 0.05, size=200)
    assert bounds(mean_of((hard + gain) - hard), 200).lower > 0
    assert bounds(mean_of(hard + gain), 200).lower < 0


@settings(max_examples=40, deadline=None)
@given(numbers, st.integers(0, 5))
def test_bounds_lie_among_the_values_whatever_they_are(values, seed):
    found = bounds(mean_of(values), len(values), resamples=200, seed=seed)
    assert min(values) - 1e-9 <= found.lower <= found.upper + 1e-9 <= max(values) + 2e-9


@settings(max_examples=20, deadline=None)
@given(numbers, st.floats(0.1, 10), st.floats(-5, 5))
def test_bounds_move_with_the_scale(values, factor, shift):
    plain = bounds(mean_of(values), len(values), resamples=200)
    moved = bounds(mean_of(np.array(values) * factor + shift), len(values), resamples=200)
    assert moved.lower == pytest.approx(plain.lower * factor + shift, abs=1e-6)


def test_what_never_varies_has_its_value_as_bound():
    found = bounds(mean_of(np.full(30, 0.0)), 30)
    assert (found.lower, found.estimate, found.upper) == (0.0, 0.0, 0.0)


def test_the_same_seed_gives_the_same_bounds_in_any_batch():
    values = np.random.default_rng(3).normal(size=50)
    assert bounds(mean_of(values), 50, seed=4, batch=7) == bounds(mean_of(values), 50, seed=4, batch=500)
    assert bounds(mean_of(values), 50, seed=4) != bounds(mean_of(values), 50, seed=5)


def test_resamples_without_a_value_are_left_out_and_none_at_all_is_refused():
    values = np.random.default_rng(3).normal(size=30)

    def sometimes(counts):
        return np.where(counts[:, 0] > 1, np.nan, counts @ values / counts.sum(axis=1))

    assert np.isfinite(bounds(sometimes, 30).lower)
    with pytest.raises(ValueError, match="not defined"):
        bounds(lambda counts: np.full(len(counts), np.nan), 30)
