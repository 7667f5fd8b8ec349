"""Evidence under peeking: exact where all outcomes can be counted, simulated where they cannot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.statistics.sequential import Looks, harm, loss, non_inferiority
from scipy.stats import binom

ALPHA = 0.05


def looks(canary: object, canary_bad: object, stable: object, stable_bad: object) -> Looks:
    return Looks(*(np.asarray(part, dtype=np.int64) for part in (canary, canary_bad, stable, stable_bad)))


def expected(evidence: object, n1: int, n0: int, p1: float, p0: float, before: tuple[int, int, int, int]) -> float:
    """Mean, over all outcomes of a second look, of what that look multiplies the evidence by."""
    x1, x0 = (grid.ravel() for grid in np.meshgrid(np.arange(n1 + 1), np.arange(n0 + 1)))
    chance = binom.pmf(x1, n1, p1) * binom.pmf(x0, n0, p0)
    first = [np.full(len(x1), number) for number in before]
    both = looks(
        *(
            np.stack(pair, axis=-1)
            for pair in zip(first, [np.full(len(x1), n1), x1, np.full(len(x1), n0), x0], strict=True)
        )
    )
    e = evidence(both)  # type: ignore[operator]
    return float(np.sum(chance * e[:, 1] / e[:, 0]))


BEFORE = st.sampled_from([(0, 0, 0, 0), (10, 0, 90, 0), (10, 3, 90, 1), (50, 50, 50, 0), (5, 0, 5, 5)])
RATE = st.integers(0, 1000).map(lambda number: number / 1000)
SIZE = st.integers(0, 12)


@settings(max_examples=150, deadline=None)
@given(SIZE, SIZE, RATE, RATE, BEFORE)
def test_no_look_is_expected_to_find_harm_where_there_is_none(
    n1: int, n0: int, stable: float, less: float, before: tuple[int, int, int, int]
) -> None:
    """Exact: a mean of at most 1 at every rate of the null hypothesis is what makes peeking safe."""
    assert expected(harm, n1, n0, stable * less, stable, before) <= 1 + 1e-9


@settings(max_examples=150, deadline=None)
@given(SIZE, SIZE, RATE, RATE, st.sampled_from([0.01, 0.05, 0.3]), BEFORE)
def test_no_look_is_expected_to_find_a_worse_canary_good_enough(
    n1: int, n0: int, where: float, more: float, margin: float, before: tuple[int, int, int, int]
) -> None:
    p0 = where * (1 - margin)
    p1 = p0 + margin + more * (1 - margin - p0)
    assert expected(lambda seen: non_inferiority(seen, margin), n1, n0, min(p1, 1.0), p0, before) <= 1 + 1e-6


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), RATE, RATE, RATE)
def test_a_share_that_is_known_may_be_more_than_the_truth_and_never_less(
    size: int, bad: float, truth: float, more: float
) -> None:
    """Exact: requests are assigned at random, and fail at the same rate in both arms."""
    given_ = truth + more * (1 - truth)
    mean = 0.0
    for canary in range(size + 1):
        x1, x0 = (part.ravel() for part in np.meshgrid(np.arange(canary + 1), np.arange(size - canary + 1)))
        chance = binom.pmf(x1, canary, bad) * binom.pmf(x0, size - canary, bad) * binom.pmf(canary, size, truth)
        one = np.ones((len(x1), 1), np.int64)
        seen = Looks(canary * one, x1[:, None], (size - canary) * one, x0[:, None], np.full((len(x1), 1), given_))
        mean += float(chance @ harm(seen)[:, 0])
    assert mean <= 1 + 1e-9


def test_pairs_in_which_the_canary_is_worse_show_it_and_equal_ones_do_not() -> None:
    rng = np.random.default_rng(3)
    worse = rng.choice([-0.5, 0.0, 0.2], (500, 300), p=[0.3, 0.6, 0.1])
    assert np.mean(loss(worse).max(-1) >= 1 / ALPHA) >= 0.95
    same = rng.choice([-0.5, 0.0, 0.5], (1000, 300), p=[0.2, 0.6, 0.2])
    assert np.mean(loss(same).max(-1) >= 1 / ALPHA) <= ALPHA
    assert loss(np.zeros(0)).shape == (0,)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_a_fair_pair_never_adds_evidence_on_average(before: list[float]) -> None:
    """Exact: whatever was seen before, +d and -d with equal chances multiply E by 1 on average."""
    base = loss(np.array(before))[-1]
    for d in (0.1, 0.5, 1.0):
        after = [loss(np.array([*before, sign * d]))[-1] for sign in (1, -1)]
        assert np.mean(after) == pytest.approx(base, rel=1e-9)


def test_without_data_or_without_errors_there_is_no_evidence_of_harm() -> None:
    assert harm(looks([0, 100], [0, 0], [0, 900], [0, 0])) == pytest.approx(np.ones(2))
    assert non_inferiority(looks([0, 0], [0, 0], [0, 0], [0, 0]), 0.01) == pytest.approx(np.ones(2))


def test_a_canary_without_traffic_shows_nothing_either_way() -> None:
    alone = looks([0] * 50, [0] * 50, [100] * 50, [1] * 50)
    assert harm(alone) == pytest.approx(np.ones(50))
    assert non_inferiority(alone, 0.01).max() < 1 / ALPHA


def simulate(p1: float, p0: float, rollouts: int = 400) -> Looks:
    """A look every 20 requests; the canary has 10 % of 5,000, then half of 5,000 more."""
    rng = np.random.default_rng(7)
    share = np.where(np.arange(500) < 250, 0.1, 0.5)
    canary = rng.binomial(20, share, (rollouts, 500))
    return Looks(canary, rng.binomial(canary, p1), 20 - canary, rng.binomial(20 - canary, p0))


def ever(evidence: np.ndarray, alpha: float = ALPHA) -> float:
    """Share of the rollouts in which the evidence sufficed at some look."""
    return float(np.mean(evidence.max(axis=-1) >= 1 / alpha))


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.1])
def test_the_same_model_twice_is_seldom_rolled_back(rate: float) -> None:
    assert ever(harm(simulate(rate, rate))) <= ALPHA


@pytest.mark.parametrize(("p1", "p0"), [(0.2, 0.001), (0.02, 0.001), (0.05, 0.01)])
def test_a_worse_canary_is_found(p1: float, p0: float) -> None:
    assert ever(harm(simulate(p1, p0))) >= 0.99


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01])
def test_the_same_model_twice_is_promoted(rate: float) -> None:
    assert ever(non_inferiority(simulate(rate, rate), 0.01)) >= 0.9


def test_at_the_margin_it_is_seldom_promoted() -> None:
    assert ever(non_inferiority(simulate(0.011, 0.001), 0.01)) <= ALPHA + 0.02
