"""A lease expires by the watcher's own clock; whoever renewed it in time keeps it, whatever the wall clocks say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.errors import Conflict
from kfp_flywheel.components.runtime.ports import EndpointState, Lease, Served
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.components.serving.leases import Leases, take_back

from tests.releases import release, with_champion

ONE, TWO = release("1"), release("2")


def leased(renewed: float, seconds: float = 10.0) -> EndpointState:
    return EndpointState(endpoint="detector", lease=Lease(owner="run-1", seconds=seconds, renewed=renewed))


@given(st.lists(st.tuples(st.floats(0, 9.9), st.floats(-1e9, 1e9)), min_size=1, max_size=20, unique_by=lambda t: t[1]))
def test_one_that_is_renewed_in_time_never_expires_even_if_its_clock_jumps(renewals: list[tuple[float, float]]) -> None:
    now = 100.0
    leases = Leases(lambda: now)
    for pause, renewed in renewals:
        assert not leases.expired(leased(renewed))
        now += pause
        assert not leases.expired(leased(renewed))


def test_one_that_is_not_renewed_expires_once_its_time_is_over() -> None:
    now = 100.0
    leases = Leases(lambda: now)
    assert not leases.expired(leased(1.0))
    now = 110.0
    assert not leases.expired(leased(1.0))
    now = 110.1
    assert leases.expired(leased(1.0))
    assert not leases.expired(leased(2.0))  # renewed at the last moment


def test_endpoints_have_leases_of_their_own() -> None:
    now = 100.0
    leases = Leases(lambda: now)
    leases.expired(leased(1.0))
    now = 105.0
    assert not leases.expired(leased(1.0).but(endpoint="other"))
    now = 111.0
    assert leases.expired(leased(1.0))
    assert not leases.expired(leased(1.0).but(endpoint="other"))


def test_a_canary_is_taken_back_and_the_ledger_says_why(world: World) -> None:
    champion = with_champion(world.serving.read("detector"), ONE)
    both = champion.versions | {"v2": Served(release=TWO, weight=50)}
    lease = Lease(owner="run-2", seconds=15, renewed=1.0)
    state = world.serving.write(champion.but(versions=both, lease=lease))
    taken = take_back(world.serving, world.store, state, 9.0)
    assert {name: served.weight for name, served in taken.versions.items()} == {"v1": 100}
    assert (taken.stable, taken.lease, taken.by, taken.since) == ("v1", None, "flywheel serve", 1.0)
    assert taken.reason == "v2 was taken back: run run-2 did not renew its lease of 15 s."
    assert ledger.history(world.store, "detector")[-1].at == 9.0
    with pytest.raises(Conflict):  # it was changed meanwhile: the rollout was only slow
        take_back(world.serving, world.store, state, 10.0)
