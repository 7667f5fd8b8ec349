"""Whether a gateway divides as it was asked to, by who answers."""

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.rollout.evidence import Look
from kfp_flywheel.components.rollout.split import not_copied, wrong_split
from kfp_flywheel.components.runtime.ports import Counts

WEIGHTS = st.integers(1, 99)


def in_turns(share: int) -> Callable[[], str]:
    """A gateway that gives version 2 exactly this share, in percent."""
    turn = itertools.count()
    return lambda: "v2" if next(turn) * share % 100 < share else "v1"


@settings(deadline=None)
@given(weight=WEIGHTS)
def test_a_gateway_that_takes_turns_divides(weight: int) -> None:
    assert wrong_split(in_turns(weight), "v2", weight) == ""


def test_a_gateway_that_draws_divides() -> None:
    rng = random.Random(1)
    wrong = [wrong_split(lambda: "v2" if rng.random() < 0.1 else "v1", "v2", 10) for _ in range(1000)]
    assert sum(map(bool, wrong)) <= 1


@pytest.mark.parametrize(("weight", "share"), [(10, 0), (10, 50), (10, 100), (50, 10), (50, 90), (1, 10), (90, 50)])
def test_another_share_than_was_asked_for_is_seen(weight: int, share: int) -> None:
    asked = {10: 100, 50: 100, 1: 1000, 90: 100}[weight]
    assert wrong_split(in_turns(share), "v2", weight).endswith(
        f" of {asked} answers came from v2, and {weight} % were asked for"
    )


def test_nobody_who_answers_is_no_share() -> None:
    assert wrong_split(lambda: "", "v2", 10) == "0 of 100 answers came from v2, and 10 % were asked for"


@pytest.mark.parametrize(("share", "right"), [(0, True), (1, False), (100, False)])
def test_in_the_shadow_nobody_may_get_its_answers(share: int, right: bool) -> None:
    assert (wrong_split(in_turns(share), "v2", 0) == "") is right


@pytest.mark.parametrize(
    ("canary", "stable", "shadow", "wrong"),
    [
        ([0, 0], [9, 200], True, True),
        ([0, 0], [9, 199], True, False),
        ([0, 150], [9, 200], True, False),
        ([1, 0], [9, 200], True, False),
        ([0, 0], [9, 200], False, False),  # it was away
        ([0, 0], [1000, 0], True, False),  # of before
        ([0, 0], [0, 1000], True, False),
    ],
)
def test_a_gateway_that_copies_nothing_is_seen(canary: list[int], stable: list[int], shadow: bool, wrong: bool) -> None:
    looks = [
        Look(at=at, weight=0, shadow=shadow, canary=Counts(requests=mine), stable=Counts(requests=theirs))
        for at, mine, theirs in zip((1.0, 11.0), canary, stable, strict=True)
    ]
    assert bool(not_copied(looks)) is wrong
    sooner = [looks[0], looks[1].but(at=10.9)]
    assert not_copied(sooner) == "", "it may not have begun yet"
