"""From what was counted to a decision: no data decides nothing, harm wins, and restarts of counters are no requests."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.rollout.evidence import HARM, Look, Replayed, Verdict, edges, judge, since
from kfp_flywheel.components.runtime.config import Rollout
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.components.runtime.ports import Counts

NOTHING = Replayed()
SETTINGS = Rollout.of(step_requests=100, max_requests=10_000, max_seconds=600)


def counts(requests: int, failures: int = 0, slow: int = 0) -> Counts:
    """Requests of which `slow` took between 10 and 100 ms, the others less."""
    return Counts(
        requests=requests,
        failures=failures,
        within={"0.01": requests - slow, "0.1": requests, "+Inf": requests},
    )


BEFORE = counts(1000, slow=50)


def looks(number: int, canary: Counts, stable: Counts, second: float = 1.0) -> list[Look]:
    return [Look(at=100 + second * n, weight=10, canary=canary, stable=stable) for n in range(number)]


def decide(found: list[Look], replayed: Replayed = NOTHING, before: Counts = BEFORE) -> Verdict:
    return judge(before, found, replayed, SETTINGS)


def test_without_a_look_it_goes_on_with_the_first_share() -> None:
    found = decide([])
    assert (found.decision, found.weight) == ("go", 10)


def test_an_equal_canary_grows_and_is_promoted_for_a_reason() -> None:
    few = decide(looks(5, counts(10, slow=1), counts(90, slow=5)))
    assert (few.decision, few.weight) == ("go", 10)
    more = decide(looks(12, counts(10), counts(90, slow=5)))
    assert (more.decision, more.weight) == ("go", 50)
    enough = decide(looks(60, counts(10), counts(10, slow=1)))
    assert enough.decision == "promote"
    assert "1.0% more failures than the stable's are ruled out" in enough.reason
    assert "600 requests to the canary and 600 to the stable" in enough.reason


def test_failures_roll_back_and_are_named() -> None:
    found = decide(looks(3, counts(10, failures=2), counts(90)))
    assert found.decision == "rollback"
    assert "canary 20.00%, stable 0.00% failures" in found.reason


def test_failures_of_both_are_nobodys_fault() -> None:
    assert decide(looks(10, counts(10, failures=2), counts(90, failures=18))).decision == "go"


def test_slowness_rolls_back() -> None:
    found = decide(looks(20, counts(10, slow=5), counts(90, slow=5)))
    assert found.decision == "rollback"
    assert "answers slower than 10 ms" in found.reason


def test_a_stable_that_is_away_makes_nothing_of_the_canary_worse() -> None:
    """Meanwhile all requests are the canary's, and its slow answers too: those of a machine that starts a pod."""
    usual = looks(5, counts(6, slow=1), counts(54, slow=3))
    away = looks(5, counts(6, slow=6), Counts())
    assert decide([*usual, *away]).decision == "go"
    assert decide([*usual, *looks(5, counts(6, slow=6), counts(54, slow=3))]).decision == "rollback"


def test_harm_wins_over_what_was_good_enough() -> None:
    good = looks(60, counts(10), counts(10))
    assert decide(good).decision == "promote"
    assert decide([*good, *looks(5, counts(10, failures=5), counts(10))]).decision == "rollback"


def test_no_traffic_and_no_telemetry_are_held_and_never_a_pass() -> None:
    assert decide(looks(10, Counts(), Counts())).decision == "go"
    silent = decide(looks(700, Counts(), Counts()))
    assert silent.decision == "hold"
    assert "nothing was shown either way" in silent.reason
    assert decide(looks(500, Counts(), counts(100))).decision == "hold"  # the canary is never asked


def test_without_known_times_nothing_is_promoted() -> None:
    unknown = Counts(requests=10)
    assert decide(looks(1000, unknown, unknown, 0.1), before=Counts()).decision == "hold"


def test_what_is_slow_is_learned_from_the_stable_if_it_was_not_known() -> None:
    assert edges(counts(99)) == ()
    assert edges(BEFORE) == ("0.01", "0.01", "0.1")
    assert decide(looks(60, counts(10, slow=1), counts(10, slow=1)), before=Counts()).decision in ("go", "promote")
    found = decide(looks(80, counts(10, slow=9), counts(10)), before=Counts())
    assert found.decision == "rollback"


def test_labelled_replays_alone_roll_back_before_any_traffic() -> None:
    worse = Replayed(labelled=60, differences=(-0.3, 0.0) * 30)
    found = decide([], worse)
    assert found.decision == "rollback"
    assert "In the shadow the canary is worse: its score differs by -0.150 on 60 labelled" in found.reason
    same = Replayed(labelled=60, differences=(-0.3, 0.3) * 30)
    assert decide([], same).decision == "go"


def test_disagreement_alone_can_only_hold() -> None:
    apart = Replayed(recorded=50, agreement=(0.2, 0.3) * 25, expected=(0.9, 0.8) * 25)
    assert decide([], apart).decision == "go"
    good = looks(60, counts(10), counts(10))
    found = decide(good, apart)
    assert found.decision == "hold"
    assert "agree to 0.250 F1, and to 0.850 when they were judged" in found.reason
    assert decide(good, Replayed(agreement=(0.2,) * 5, expected=(0.9,) * 50)).decision == "promote"  # five tell nothing


COUNTS = st.builds(
    lambda requests, failed, slow: counts(requests, min(failed, requests), min(slow, requests)),
    *(st.integers(0, 50), st.integers(0, 3), st.integers(0, 50)),
)


@given(st.lists(st.tuples(COUNTS, COUNTS), max_size=30))
def test_any_looks_give_a_decision_with_a_reason(rows: list[tuple[Counts, Counts]]) -> None:
    found = decide([Look(at=float(n), weight=10, canary=c, stable=s) for n, (c, s) in enumerate(rows)])
    assert found.decision in ("go", "promote", "rollback", "hold")
    assert found.reason
    assert all(check.sentence for check in found.checks)
    again = decide([Look(at=float(n), weight=10, canary=c, stable=s) for n, (c, s) in enumerate(rows)])
    assert again == found


@given(COUNTS, COUNTS)
def test_counters_that_began_anew_count_from_nothing(before: Counts, more: Counts) -> None:
    total = Counts(
        requests=before.requests + more.requests,
        failures=before.failures + more.failures,
        within={edge: before.within[edge] + more.within[edge] for edge in before.within},
    )
    assert since(total, before) == more
    if more.requests < before.requests:
        assert since(more, before) == more


SHADOWED = Rollout.of(canary_steps="0,10,50", step_requests=100, max_requests=10_000, max_seconds=600)


def copied(canary: Counts, stable: Counts) -> Look:
    return Look(at=1.0, weight=0, shadow=True, canary=canary, stable=stable)


def test_it_stays_in_the_shadow_until_enough_copies_were_answered() -> None:
    first = judge(BEFORE, [], NOTHING, SHADOWED)
    assert (first.decision, first.weight) == ("go", 0)
    second = judge(BEFORE, [copied(counts(50), counts(50))], NOTHING, SHADOWED)
    assert (second.decision, second.weight) == ("go", 0)
    third = judge(BEFORE, [copied(counts(50), counts(50))] * 2, NOTHING, SHADOWED)
    assert (third.decision, third.weight) == ("go", 10)


def test_from_the_shadow_nobody_becomes_champion_before_it_has_answered() -> None:
    shown = [copied(counts(50), counts(50))] * 20
    found = judge(BEFORE, shown, NOTHING, SHADOWED)
    assert (found.decision, found.weight) == ("go", 50)
    assert judge(BEFORE, [*shown, *looks(9, counts(10), counts(90))], NOTHING, SHADOWED).decision == "go"
    assert judge(BEFORE, [*shown, *looks(10, counts(10), counts(90))], NOTHING, SHADOWED).decision == "promote"
    only = Rollout.of(canary_steps="0,100", step_requests=100)
    assert judge(BEFORE, shown, NOTHING, only).decision == "promote", "nothing else was asked for"
    silent = judge(BEFORE, [*shown, *looks(600, Counts(), Counts())], NOTHING, SHADOWED)
    assert (silent.decision, "too few requests of its own" in silent.reason) == ("hold", True)


def test_harm_in_the_shadow_is_harm() -> None:
    found = judge(BEFORE, [copied(counts(50, failures=8), counts(50))], NOTHING, SHADOWED)
    assert (found.decision, found.weight) == ("rollback", 0)
    both_fail = [copied(counts(50, failures=8), counts(50, failures=8))] * 10
    assert judge(BEFORE, both_fail, NOTHING, SHADOWED).decision == "go"


def test_requests_that_fail_whoever_is_asked_are_no_harm_in_the_shadow() -> None:
    """Copies are no second draw: what is wrong with a request is wrong with its copy."""
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(200):
        rows = []
        for _ in range(40):
            shared, mine, theirs = rng.binomial(50, 0.02), rng.binomial(50, 0.005), rng.binomial(50, 0.005)
            rows.append(copied(counts(50, failures=shared + mine), counts(50, failures=shared + theirs)))
        wrong += judge(BEFORE, rows, NOTHING, SHADOWED).decision == "rollback"
    assert wrong <= 200 * HARM


@pytest.mark.parametrize("steps", ["0,0", "50,10", "100", "10,101", "10,10", "10,0"])
def test_shares_that_make_no_sense_are_refused(steps: str) -> None:
    with pytest.raises(UserError, match="canary_steps"):
        Rollout.of(canary_steps=steps)
