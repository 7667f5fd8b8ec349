"""The steps of an endpoint in Knative's mode, over a model of what KServe and Knative do, in any order.

The model is KServe 0.20's `createKnativeService` and `PropagateStatus`, and Knative's service, configuration and route,
each of which knows of the others' work late. The same with their real controllers: tests/cluster/test_knative.py.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.kserve import revisions
from kfp_flywheel.components.runtime.adapters.kserve.build import VERSION
from kfp_flywheel.components.runtime.adapters.kserve.revisions import Asked, asked_of, edited, rolled, step
from kfp_flywheel.components.runtime.adapters.kubernetes import MANAGER
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.components.runtime.ports import EndpointState, Served

from tests.cluster.fixtures import platform_without_pods
from tests.releases import release

Policy = Callable[[EndpointState, Asked | None, revisions.Rolled], Asked]
Split = tuple[tuple[str, int], ...]
LATEST = "latest"


@dataclass
class Cluster:
    """One endpoint. Each method lets one controller do its work once, or lets something happen."""

    asked: Asked | None = None
    template: tuple[str, str] | None = None
    """Of the Knative Service: version and turn."""
    split: Split = ()
    """Of the Knative Service, with `LATEST` for the latest ready revision."""
    configured: tuple[str, str] | None = None
    routed: Split = ()
    """What the Route was handed."""
    made: list[tuple[str, str]] = field(default_factory=list)
    """Revisions, oldest first; their place is their name."""
    ready: set[int] = field(default_factory=set)
    latest: int = -1
    """The latest ready revision, as the configuration says."""
    traffic: tuple[tuple[int, int, bool], ...] = ()
    """What flows: revision, percent, whether it is there as the latest."""
    told: tuple[int, int] = (-1, -1)
    """The Knative Service's status: latest created and latest ready revision."""
    told_traffic: tuple[tuple[int, int, bool], ...] = ()
    status: tuple[int, int, int, int] = (-1, -1, -1, -1)
    """KServe's: latest created and ready, fully rolled out last and before it."""

    def kserve(self) -> None:
        if self.asked is None:
            return
        full = self.status[2]
        percent = 100 if self.asked.percent is None else self.asked.percent
        if full < 0 or percent == 100:
            self.split = ((LATEST, 100),)
        else:
            self.split = ((LATEST, percent), (str(full), 100 - percent))
        self.template = self.asked.version, self.asked.turn
        self._propagate()

    def _propagate(self) -> None:
        created, ready = self.told
        full, before = self.status[2:]
        for revision, percent, is_latest in self.told_traffic:
            if revision != ready or not is_latest:
                continue
            if full != ready:
                if percent == 100:
                    full, before = ready, full
            elif ready == created and percent < 100:
                whole = sum(share for name, share, _ in self.told_traffic if name == revision)
                if whole == 100 and before >= 0:
                    full = before
        self.status = created, ready, full, before

    def service(self) -> None:
        """Hand the template and the split on, at once."""
        self.configured, self.routed = self.template, self.split

    def configuration(self) -> None:
        if self.configured and (not self.made or self.made[-1] != self.configured):
            self.made.append(self.configured)
        self.latest = max([self.latest, *self.ready])

    def route(self) -> None:
        if self.routed and self.latest >= 0:
            self.traffic = tuple(
                (self.latest if name == LATEST else int(name), share, name == LATEST) for name, share in self.routed
            )

    def tell_configuration(self) -> None:
        self.told = len(self.made) - 1, self.latest

    def tell_route(self) -> None:
        self.told_traffic = self.traffic

    def gets_ready(self, number: int) -> None:
        if self.made:
            self.ready.add(number % len(self.made))

    def shares(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for revision, share, _ in self.traffic:
            if share:
                version = self.made[revision][0]
                found[version] = found.get(version, 0) + share
        return found

    def seen(self) -> revisions.Rolled:
        """What our adapter reads."""
        names = ("latestCreatedRevision", "latestReadyRevision", "latestRolledoutRevision", "previousRolledoutRevision")
        known = {name: f"r{number}" for name, number in zip(names, self.status, strict=True) if number >= 0}
        items = [
            {"metadata": {"name": f"r{number}", "labels": {VERSION: version, revisions.TURN: turn}}}
            for number, (version, turn) in enumerate(self.made)
        ]
        return rolled({"status": {"components": {"predictor": known}}}, items)

    def go_on(self, policy: Policy, state: EndpointState) -> None:
        self.asked = policy(state, self.asked, self.seen())

    def settle(self, policy: Policy, state: EndpointState) -> None:
        """Everything gets ready, and everybody does all there is to do."""
        for _ in range(12):
            self.go_on(policy, state)
            for act in CONTROLLERS:
                getattr(self, act)()
            self.ready.update(range(len(self.made)))


CONTROLLERS = ("kserve", "service", "configuration", "route", "tell_configuration", "tell_route", "kserve")
MEN = ("canary", "share", "withdraw", "promote")


def wanted(stable_one: int, canary: int = 0, weight: int = 0, generation: int = 1) -> EndpointState:
    versions = {f"v{stable_one}": Served(release=release(str(stable_one)), weight=100 - weight)}
    if canary:
        versions[f"v{canary}"] = Served(release=release(str(canary)), weight=weight)
    return EndpointState(endpoint="e", generation=generation, stable=f"v{stable_one}", versions=versions)


@dataclass
class Rollouts:
    """What is wanted one after the other, and what may have traffic meanwhile."""

    state: EndpointState = field(default_factory=lambda: wanted(1))
    champion: int = 1
    canary: int = 0
    newest: int = 1
    former: set[str] = field(default_factory=set)
    """Champions before: they serve until the new one is rolled out."""

    def next(self, what: str, weight: int) -> None:
        """Have something else wanted, if it makes sense now."""
        if what == "canary" and not self.canary:
            self.newest += 1
            self.canary, weight = self.newest, 0
        elif what == "withdraw" and self.canary:
            self.canary = 0
        elif what == "promote" and self.canary:
            self.former.add(f"v{self.champion}")
            self.champion, self.canary = self.canary, 0
        elif what != "share" or not self.canary:
            return
        share = weight if self.canary else 0
        self.state = wanted(self.champion, self.canary, share, self.state.generation + 1)

    def exceeded(self, shares: dict[str, int]) -> str:
        """A version that has more than it may have."""
        allowed = {version: served.weight for version, served in self.state.versions.items()}
        allowed |= dict.fromkeys([*self.former, f"v{self.champion}"], 100)
        return next((version for version, share in shares.items() if share > allowed.get(version, 0)), "")


def play(policy: Policy, plan: list[tuple[str, int]]) -> str:
    """Let it all happen; what went wrong, or nothing."""
    cluster, rollouts = Cluster(), Rollouts()
    cluster.settle(policy, rollouts.state)
    for what, number in plan:
        if what in MEN:
            rollouts.next(what, number % 100)
            cluster.go_on(policy, rollouts.state)
            for act in AT_ONCE:  # what was taken back is gone when they have worked, each from what it knows by then
                getattr(cluster, act)()
        elif what == "ready":
            cluster.gets_ready(number)
        elif what == "write":
            cluster.go_on(policy, rollouts.state)
        else:
            getattr(cluster, what)()
        if cluster.seen().full == rollouts.state.stable:
            rollouts.former.clear()
        if version := rollouts.exceeded(cluster.shares()):
            return f"{version} has {cluster.shares()} after {what}: {rollouts}, {cluster}"
    cluster.settle(policy, rollouts.state)
    want = {version: served.weight for version, served in rollouts.state.versions.items() if served.weight}
    return "" if cluster.shares() == want else f"{cluster.shares()}, not {want}: {cluster}"


AT_ONCE = ("kserve", "service", "route")
ACTS = [*CONTROLLERS[:-1], "ready", "write", *MEN]
SECOND = "canary configuration ready configuration tell_configuration promote share tell_route canary"
"""Version 2 is rolled out, the route's word of it is on its way, and version 3 is to begin."""


def acts(names: str) -> list[tuple[str, int]]:
    return [(name, 1) for name in names.split()]


@example(acts(f"{SECOND} share promote tell_route withdraw promote")).via("promoted before its template was asked for")
@example(acts(f"{SECOND} promote canary promote tell_route promote canary")).via("two so promoted, one after the other")
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 199)), max_size=60))
def test_whatever_comes_between_no_version_gets_more_than_its_share(plan: list[tuple[str, int]]) -> None:
    assert play(step, plan) == ""


def share_at_once(state: EndpointState, asked: Asked | None, seen: revisions.Rolled) -> Asked:
    """The share is raised when it is wanted, whatever is ready."""
    found, canary = step(state, asked, seen), revisions.canary_of(state)
    return found._replace(percent=state.versions[canary].weight) if canary and found.version == canary else found


def stable_at_once(state: EndpointState, asked: Asked | None, seen: revisions.Rolled) -> Asked:
    """The stable version gets everything as soon as its template is back."""
    found = step(state, asked, seen)
    return found._replace(percent=100) if found.version == state.stable else found


def canary_at_once(state: EndpointState, asked: Asked | None, seen: revisions.Rolled) -> Asked:
    """A canary begins wherever KServe may fall back to."""
    return step(state, asked, seen._replace(before=""))


def known_by_version(state: EndpointState, asked: Asked | None, seen: revisions.Rolled) -> Asked:
    """A revision of before is taken for the one that is meant now, if it is of the same version."""
    found = step(state, asked, seen)
    return found._replace(turn=found.version)


@pytest.mark.parametrize("naive", [share_at_once, stable_at_once, canary_at_once, known_by_version])
def test_without_one_of_the_steps_something_goes_wrong(naive: Policy) -> None:
    """The control: the model finds what each of them is there for."""
    chance = random.Random(0)
    plans = ([(chance.choice(ACTS), chance.randrange(200)) for _ in range(60)] for _ in range(3000))
    assert any(play(naive, plan) for plan in plans)


def test_a_canary_does_not_begin_before_its_champion_was_rolled_out() -> None:
    state = wanted(1, 2, 10)
    first = step(state, None, revisions.Rolled())
    assert first[:2] == ("v1", 100)
    assert step(state, first, revisions.Rolled()) == first
    assert step(state, first, revisions.Rolled(turn=first.turn, full="v1", latest=True))[:2] == ("v2", 0)


def test_each_change_of_the_template_has_a_turn_of_its_own() -> None:
    state = wanted(1, generation=1_700_000_000)
    assert step(state, None, revisions.Rolled()).turn == "1700000000"
    asked = Asked("v2", 50, "1700000009")
    assert step(state, asked, revisions.Rolled("1700000009", "v1", "", False)) == Asked("v1", 0, "1700000010")
    assert step(state, asked._replace(turn="by hand"), revisions.Rolled("", "v1", "", False)).turn == "1700000000"


def test_where_the_champion_before_is_gone_nothing_is_known_of_it() -> None:
    known = {"latestReadyRevision": "r2", "latestRolledoutRevision": "r2", "previousRolledoutRevision": "r1"}
    item = {"metadata": {"name": "r2", "labels": {VERSION: "v2", revisions.TURN: "7"}}}
    seen = rolled({"status": {"components": {"predictor": known}}}, [item])
    assert seen == revisions.Rolled(turn="7", full="v2", before="?", latest=True)
    asked = Asked("v2", 100, "7")
    assert step(wanted(2, 3), asked, seen) == Asked("v2", 100, "8")  # once more


def test_two_revisions_are_one_version_and_it_answers_where_its_traffic_is() -> None:
    items = [
        {"metadata": {"name": f"r{turn}", "labels": {VERSION: version, revisions.TURN: str(turn)}}}
        for turn, version in enumerate(["v1", "v2", "v1"], 1)
    ]
    latest = {"revisionName": "r3", "percent": 0, "tag": "latest", "url": "http://latest"}
    rest = {"revisionName": "r1", "percent": 100, "tag": "prev", "url": "http://prev"}
    item = {"status": {"components": {"predictor": {"traffic": [latest, rest]}}}}
    assert revisions.place_of("v1", item, items) == (items[0], "http://prev")
    assert revisions.place_of("v2", item, items) == (items[1], "")
    assert revisions.place_of("v3", item, items) == (None, "")


def asking(version: str, percent: int | None) -> dict[str, Any]:
    labels = {VERSION: version, revisions.TURN: "1"}
    return {"spec": {"predictor": {"labels": labels} | ({} if percent is None else {revisions.PERCENT: percent})}}


@pytest.mark.parametrize(
    ("asks", "by", "who"),
    [
        (asking("v2", 10), "kubectl", ""),
        (asking("v2", 40), "kubectl", "by kubectl at NOW"),
        (asking("v2", 0), "kubectl", "by kubectl at NOW"),
        (asking("v2", 0), MANAGER, ""),
        (asking("v2", None), "", "by somebody"),
        (asking("v1", None), "", ""),
        (asking("v1", 0), "kubectl", "by kubectl at NOW"),
    ],
)
def test_an_edit_is_a_share_that_we_did_not_ask_for(asks: dict[str, Any], by: str, who: str) -> None:
    setters = [{"manager": by, "time": "NOW"}] if by else []
    assert edited(wanted(1, 2, 10), asks, setters).removeprefix("its InferenceService was edited ") == who


def test_a_mode_of_its_own_with_what_knative_allows() -> None:
    platform = platform_without_pods("team", "knative")
    runtime = revisions.runtime("team", platform.images["serve"], platform.pods)
    server = runtime["spec"]["containers"][0]
    assert ("lifecycle" in server, server["ports"][0]["name"]) == (False, "http1")
    made = revisions.service("team", wanted(1, 2, 10), Asked("v2", 0, "7"), platform, "runtime")
    assert asked_of(made) == Asked("v2", 0, "7")
    assert made["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert VERSION not in made["metadata"]["labels"]


def test_what_two_revisions_cannot_do_is_the_users_to_mend() -> None:
    state = wanted(1, 2, 10)
    revisions.refuse_indivisible(state)
    revisions.refuse_indivisible(EndpointState(endpoint="e"))
    with pytest.raises(UserError, match="v1 with 0 %, v2 with 100 %"):
        revisions.refuse_indivisible(wanted(1, 2, 100))
    with pytest.raises(UserError, match="mode: standard"):
        revisions.refuse_indivisible(state.but(stable=None))
    shadowed = state.versions | {
        "v1": state.versions["v1"].alone(),
        "v2": state.versions["v2"].but(weight=0, shadow=True),
    }
    with pytest.raises(UserError, match="no requests"):
        revisions.refuse_indivisible(state.but(versions=shadowed))
