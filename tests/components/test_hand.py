"""What a person decides about an endpoint stands at once, and the ledger tells who it was."""

import pytest
from kfp_flywheel.components.rollout import hand
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.ports import Lease, Observed, Served
from kfp_flywheel.components.runtime.wiring import World

from tests.releases import release, with_champion

ONE, TWO = release("1"), release("2")
LEASE = Lease(owner="run-2", seconds=15, renewed=1.0)


@pytest.fixture
def both(world: World) -> World:
    """v1 is champion and v2 its canary, under a lease."""
    ledger.append(world.store, world.serving.write(with_champion(world.serving.read("detector"), ONE)))
    state = world.serving.read("detector")
    versions = {"v1": Served(release=ONE, weight=90), "v2": Served(release=TWO, weight=10)}
    world.serving.write(state.but(versions=versions, lease=LEASE))
    return world


def test_a_canary_is_promoted_by_hand(both: World) -> None:
    state = hand.promote(both.store, both.serving, "detector", "somebody", 7.0)
    assert (state.stable, state.lease, state.by, state.since) == ("v2", None, "somebody", 7.0)
    assert {name: served.weight for name, served in state.versions.items()} == {"v2": 100}
    assert ledger.history(both.store, "detector")[-1].reason == "v2 was promoted by hand."


def test_a_canary_is_taken_back_by_hand_and_the_champion_stays_since_when_it_was(both: World) -> None:
    state = hand.rollback(both.store, both.serving, "detector", "somebody", 7.0)
    assert (state.stable, state.lease, state.since, state.changed) == ("v1", None, 1.0, 7.0)
    assert {name: served.weight for name, served in state.versions.items()} == {"v1": 100}


def test_without_a_canary_a_rollback_goes_to_the_champion_before(both: World) -> None:
    hand.promote(both.store, both.serving, "detector", "somebody", 7.0)
    state = hand.rollback(both.store, both.serving, "detector", "somebody", 8.0)
    assert (state.champion, state.stable, state.since) == (ONE, "v1", 8.0)
    assert state.reason == "v2 was rolled back to v1 by hand."
    again = hand.rollback(both.store, both.serving, "detector", "somebody", 9.0)
    assert again.champion == TWO


def test_where_there_is_nothing_to_decide_the_next_command_is_named(world: World) -> None:
    with pytest.raises(UserError, match=r"has no canary: nothing serves alone.*flywheel rollout"):
        hand.promote(world.store, world.serving, "detector", "somebody", 7.0)
    ledger.append(world.store, world.serving.write(with_champion(world.serving.read("detector"), ONE)))
    with pytest.raises(UserError, match=r"no champion before v1.*flywheel history"):
        hand.rollback(world.store, world.serving, "detector", "somebody", 7.0)


def test_a_champion_before_that_does_not_answer_changes_nothing(both: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "AWAKE_S", 0.2)
    assert isinstance(both.serving, LocalServing)
    promoted = hand.promote(both.store, both.serving, "detector", "somebody", 7.0)
    with both.serving.hold() as publish:
        publish("http://127.0.0.1:1")
        broken = Observed(ready=False, reason="its model is broken")
        both.serving.report("detector", {"v2": Observed(ready=True, url="http://127.0.0.1:1"), "v1": broken}, {})
        with pytest.raises(PlatformError, match=r"v1 does not answer within 0\.2 s: its model is broken; v2 goes on"):
            hand.rollback(both.store, both.serving, "detector", "somebody", 8.0)
    state = both.serving.read("detector")
    assert (state.versions, state.stable, state.lease) == (promoted.versions, "v2", None)
    assert [entry.weights for entry in ledger.history(both.store, "detector")][-2:] == [
        {"v1": 0, "v2": 100},
        {"v2": 100},
    ]
