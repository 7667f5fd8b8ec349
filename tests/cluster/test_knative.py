"""Endpoints in Knative's mode, with KServe's and Knative's own controllers; pods and ingress are played.

What is told of the traffic is what Knative asks the ingress for, at every moment.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kfp_flywheel.components.runtime.adapters.kserve.build import SERVICE, STATE
from kfp_flywheel.components.runtime.adapters.kserve.knative import KnativeServing
from kfp_flywheel.components.runtime.adapters.kserve.revisions import (
    KNATIVE_SERVICE,
    PERCENT,
    REVISION,
    asked_of,
    predictor_of,
)
from kfp_flywheel.components.runtime.adapters.leader import LEASE
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.errors import Conflict, Corrupt, UserError
from kfp_flywheel.components.runtime.ports import EndpointState, Lease, Observed, Served
from kfp_flywheel.components.runtime.wiring import connect
from kfp_flywheel.components.serving.keeper import Keeper
from kubernetes import client

from tests.releases import release, stable
from tests.waiting import wait_for

from .fixtures import platform_without_pods
from .knative import Around, Knative

NAME = "detector"
SECONDS = 30


class There:
    """An endpoint, and what Knative makes of it."""

    def __init__(self, api: client.ApiClient, namespace: str, knative: Knative, around: Around) -> None:
        self.namespace, self.knative, self.around = namespace, knative, around
        serving = connect(platform_without_pods(namespace, "knative")).serving
        assert isinstance(serving, KnativeServing)
        self.serving = serving
        self.objects = self.serving.objects

    def service(self) -> dict[str, Any]:
        found = self.objects.get(SERVICE, NAME)
        assert found is not None
        return found

    def home(self) -> dict[str, Any]:
        found = self.objects.get(LEASE, NAME)
        assert found is not None
        return found

    def patch(self, predictor: dict[str, Any], by: str) -> None:
        """What others do, with kubectl edit or naively."""
        self.objects.api.patch_namespaced_custom_object(
            *self.objects.at(SERVICE), NAME, {"spec": {"predictor": predictor}}, field_manager=by
        )

    def keep(self) -> None:
        """What the reconciler does, again and again."""
        if home := self.objects.get(LEASE, NAME):
            self.serving.keep(home)

    def until(self, so: Callable[[], bool], what: str = "what is waited for") -> None:
        def kept() -> bool:
            self.keep()
            return so()

        wait_for(kept, SECONDS, what)

    def until_shares(self, **shares: int) -> None:
        self.until(lambda: self.around.shares == shares, f"{shares}, not {self.around.history},")

    def until_ready(self, version: str) -> Observed:
        self.until(lambda: self.seen(version).ready, f"{version}")
        return self.seen(version)

    def seen(self, version: str) -> Observed:
        return self.serving.observe(NAME).get(version, Observed(ready=False))

    def revisions(self) -> int:
        return len(self.objects.list(REVISION, f"flywheel/endpoint={NAME}"))

    def status(self) -> Any:
        return predictor_of(self.service())

    def first(self) -> EndpointState:
        """Version 1 as champion, rolled out."""
        written = self.serving.write(stable(self.serving.read(NAME), "1"))
        self.until_ready("v1")
        self.until(lambda: bool(self.status().get("latestRolledoutRevision")))
        return written

    def second(self) -> EndpointState:
        """Version 2 as champion, rolled out after version 1."""
        self.serving.write(beside(self.first(), 0))
        self.until_ready("v2")
        self.serving.write(stable(self.serving.read(NAME), "2", "q"))
        self.until_shares(v2=100)
        self.until(lambda: bool(self.status().get("previousRolledoutRevision")))
        return self.serving.read(NAME)


@pytest.fixture
def there(cluster: client.ApiClient, namespace: str, knative: Knative) -> Iterator[There]:
    with Around(cluster, namespace, NAME) as around:
        yield There(cluster, namespace, knative, around)


def beside(state: EndpointState, weight: int, version: str = "2", package: str = "q") -> EndpointState:
    """The state with a version as a canary."""
    assert state.stable
    versions = {
        state.stable: state.versions[state.stable].but(weight=100 - weight),
        f"v{version}": Served(release=release(version, package), weight=weight),
    }
    return state.but(versions=versions)


def without(state: EndpointState) -> EndpointState:
    """The state with its champion alone."""
    assert state.stable
    return state.but(versions={state.stable: state.versions[state.stable].but(weight=100)}, lease=None)


def most(history: list[dict[str, int]], version: str) -> int:
    """The greatest share that a version had."""
    return max((shares.get(version, 0) for shares in history), default=0)


def test_a_first_release_gets_everything_when_it_is_ready(there: There) -> None:
    there.around.unready.add("v1")
    written = there.serving.write(stable(there.serving.read(NAME), "1"))
    assert there.serving.read(NAME) == written
    wait_for(lambda: there.revisions() == 1, SECONDS)
    seen = there.seen("v1")
    assert not seen.ready
    assert seen.reason
    wait_for(lambda: bool(there.serving.url(NAME)), SECONDS)
    assert there.serving.url(NAME) == f"http://detector-predictor.{there.namespace}.svc.cluster.local"
    there.around.unready.clear()
    there.until_shares(v1=100)
    assert there.until_ready("v1").url == f"http://latest-detector-predictor.{there.namespace}.svc.cluster.local"


def test_what_runs_is_the_version_with_its_package_and_nothing_that_knative_refuses(there: There) -> None:
    there.first()
    found = there.objects.get(KNATIVE_SERVICE, "detector-predictor")
    assert found is not None
    pod = found["spec"]["template"]["spec"]
    server = pod["containers"][0]
    given = {variable["name"]: variable.get("value") for variable in server["env"]}
    assert (given["FLYWHEEL_VERSION"], given["FLYWHEEL_PACKAGE"]) == ("v1", "s3://bucket/artifacts/p.json")
    assert there.knative.refusal(found) == ""
    # The control: what the Standard mode's pods have beyond that.
    server["lifecycle"], server["ports"][0]["name"] = {"preStop": {"sleep": {"seconds": 5}}}, "http"
    pod["topologySpreadConstraints"] = [{"maxSkew": 1, "topologyKey": "node", "whenUnsatisfiable": "ScheduleAnyway"}]
    said = there.knative.refusal(found)
    assert all(what in said for what in ("Port name http", ".lifecycle", ".topologySpreadConstraints"))


def test_a_canary_gets_its_share_and_becomes_champion(there: There) -> None:
    state = there.serving.write(beside(there.first(), 0))
    canary = there.until_ready("v2")
    assert canary.url == f"http://latest-detector-predictor.{there.namespace}.svc.cluster.local"
    assert there.seen("v1").url == f"http://prev-detector-predictor.{there.namespace}.svc.cluster.local"
    assert there.around.history == [{"v1": 100}]
    for weight in (10, 50):
        state = there.serving.write(beside(state, weight))
        there.until_shares(v1=100 - weight, v2=weight)
    champion = there.serving.write(stable(state, "2", "q"))
    there.until_shares(v2=100)
    assert there.serving.read(NAME) == champion
    assert there.around.history == [{"v1": 100}, {"v1": 90, "v2": 10}, {"v1": 50, "v2": 50}, {"v2": 100}]


def test_a_share_of_a_canary_that_is_not_ready_is_recorded_and_given_when_it_is(there: There) -> None:
    there.around.unready.add("v2")
    state = there.serving.write(beside(there.first(), 0))
    wait_for(lambda: there.revisions() == 2, SECONDS)
    state = there.serving.write(beside(state, 10))
    assert there.serving.read(NAME).versions["v2"].weight == 10
    there.keep()
    assert asked_of(there.service()).percent == 0
    assert not there.seen("v2").ready
    there.around.unready.clear()
    there.until_ready("v2")
    there.serving.write(state.but(lease=Lease(owner="run", seconds=15, renewed=1)))  # a renewal does it too
    there.until_shares(v1=90, v2=10)


def test_a_champion_that_is_not_ready_is_waited_for_by_its_canary(there: There) -> None:
    """The share is ignored at a first deploy: the canary would get everything."""
    there.around.unready.add("v1")
    there.serving.write(beside(there.serving.write(stable(there.serving.read(NAME), "1")), 10))
    wait_for(lambda: there.revisions() == 1, SECONDS)
    assert there.seen("v2").reason == "it waits until v1 is rolled out"
    there.keep()
    assert there.revisions() == 1
    there.around.unready.clear()
    there.until_shares(v1=90, v2=10)
    assert there.around.history == [{"v1": 100}, {"v1": 90, "v2": 10}]


def test_a_canary_that_was_taken_away_never_gets_a_share_again(there: There) -> None:
    state = there.serving.write(beside(there.first(), 0))
    there.until_ready("v2")
    state = there.serving.write(beside(state, 10))
    there.until_shares(v1=90, v2=10)
    state = there.serving.write(without(state))
    there.until_shares(v1=100)
    before = len(there.around.history)
    there.around.unready.add("v3")
    state = there.serving.write(beside(state, 0, "3", "r"))  # at once, and again when the stable is the latest
    state = there.serving.write(beside(state, 10, "3", "r"))
    there.until(lambda: there.seen("v3").reason != "it waits until v1 is rolled out")
    assert there.around.history[before:] == []
    there.around.unready.clear()
    there.until_shares(v1=90, v3=10)
    there.serving.write(without(state))
    there.until(lambda: asked_of(there.service())[:2] == ("v1", 100))
    there.until_shares(v1=100)
    assert most(there.around.history[before:], "v2") == 0


def test_naively_the_next_canarys_share_goes_to_the_bad_one(there: There) -> None:
    """The control: the same without our steps."""
    state = there.serving.write(beside(there.first(), 0))
    there.until_ready("v2")
    there.serving.write(beside(state, 10))
    there.until_shares(v1=90, v2=10)
    there.patch({PERCENT: 0}, "naive")  # rolled back
    wait_for(lambda: there.around.shares == {"v1": 100}, SECONDS)
    there.around.unready.add("v3")
    there.patch({PERCENT: 10, "labels": {"flywheel/version": "v3"}}, "naive")  # the next one, which is not ready
    wait_for(lambda: there.around.shares == {"v1": 90, "v2": 10}, SECONDS)


def test_naively_the_stables_template_without_a_share_sends_everything_to_the_bad_one(there: There) -> None:
    """The control: the stable version is put back at once, but its new revision is not ready yet."""
    state = there.serving.write(beside(there.first(), 0))
    there.until_ready("v2")
    there.serving.write(beside(state, 10))
    there.until_shares(v1=90, v2=10)
    there.around.unready.add("v1")
    there.patch({PERCENT: None, "labels": {"flywheel/version": "v1", "flywheel/turn": "1"}}, "naive")
    wait_for(lambda: there.around.shares == {"v2": 100}, SECONDS)


def stale(there: There) -> tuple[str, str]:
    """Write the next canary's template while Knative is slow, and show KServe the status of such a moment.

    Returns:
        The version that KServe has the rest of the traffic sent to, before and after.
    """
    before = there.objects.get(KNATIVE_SERVICE, "detector-predictor")
    assert before is not None
    there.knative.hold()
    try:
        latest = before["status"]["latestReadyRevisionName"]
        there.patch({PERCENT: 0, "labels": {"flywheel/version": "v3", "flywheel/turn": "3"}}, "test")

        def rest() -> str:
            found = there.objects.get(KNATIVE_SERVICE, "detector-predictor") or {}
            return next((one["revisionName"] for one in found["spec"]["traffic"] if "revisionName" in one), "")

        wait_for(lambda: rest() == latest, SECONDS)
        # The route was quicker than the configuration: 0 % and 100 % of one revision, which is still the latest.
        split = [
            {"revisionName": latest, "latestRevision": True, "percent": 0, "tag": "latest"},
            {"revisionName": latest, "latestRevision": False, "percent": 100, "tag": "prev"},
        ]
        there.objects.api.patch_namespaced_custom_object_status(
            *there.objects.at(KNATIVE_SERVICE), "detector-predictor", {"status": {"traffic": split}}
        )
        wait_for(lambda: rest() != latest, SECONDS)
        return version_of(there, latest), version_of(there, rest())
    finally:
        there.knative.go_on()


def version_of(there: There, revision: str) -> str:
    found = there.objects.get(REVISION, revision)
    assert found is not None
    return str(found["metadata"]["labels"]["flywheel/version"])


def test_naively_a_canary_after_a_promotion_may_bring_back_the_champion_before(there: There) -> None:
    """The control: KServe takes a share of 0 for a rollback while Knative has not made the canary's revision."""
    there.second()
    assert stale(there) == ("v2", "v1")


def test_a_canary_after_a_promotion_finds_the_champion_in_both_places(there: There) -> None:
    state = there.second()
    before = len(there.around.history)
    there.around.unready.add("v3")
    there.serving.write(beside(state, 0, "3", "r"))
    assert asked_of(there.service())[:2] == ("v2", 100)  # once more
    there.until(lambda: asked_of(there.service())[:2] == ("v3", 0))
    found = there.status()
    names = found["latestRolledoutRevision"], found["previousRolledoutRevision"]
    assert [version_of(there, name) for name in names] == ["v2", "v2"]
    assert names[0] != names[1]
    there.around.unready.clear()
    there.until_ready("v3")
    assert there.around.history[before:] == []
    there.serving.write(without(there.serving.read(NAME)))
    there.until(lambda: asked_of(there.service())[:2] == ("v2", 100))
    there.until(lambda: there.status()["latestReadyRevision"] == there.status()["latestRolledoutRevision"])
    assert stale(there) == ("v2", "v2")


def test_a_person_rolls_back_to_the_champion_before_without_a_gap(there: There) -> None:
    state = there.second()
    before = len(there.around.history)
    there.serving.write(stable(state, "1"))
    there.until_shares(v1=100)
    assert there.around.history[before:] == [{"v1": 100}]


def test_the_renewal_of_a_lease_makes_no_revision(there: There) -> None:
    state = there.serving.write(beside(there.first(), 0))
    there.until_ready("v2")
    for renewed in range(3):
        state = there.serving.write(state.but(lease=Lease(owner="run", seconds=15, renewed=renewed)))
    generation = there.service()["metadata"]["generation"]
    there.serving.write(state.but(reason="explained"))
    assert there.home()["spec"]["holderIdentity"] == "run"
    assert (there.service()["metadata"]["generation"], there.revisions()) == (generation, 2)


def test_naively_the_state_in_the_inference_service_makes_a_revision_with_each_change(there: There) -> None:
    """The control: why it is elsewhere."""
    there.first()
    there.objects.patch(SERVICE, NAME, {"metadata": {"annotations": {STATE: "{}"}}})
    wait_for(lambda: there.revisions() == 2, SECONDS)


def test_of_two_writers_one_is_told(there: There) -> None:
    first = there.first()
    both = there.serving.write(beside(first, 10))
    with pytest.raises(Conflict, match=f"generation {both.generation}, not {first.generation}"):
        there.serving.write(beside(first, 50))
    there.until_shares(v1=90, v2=10)
    assert there.serving.read(NAME) == both


@pytest.mark.parametrize(("percent", "shares"), [(40, {"v1": 60, "v2": 40}), (None, {"v1": 0, "v2": 100})])
def test_an_edit_by_hand_is_seen_and_not_overwritten_unless_by_somebody_who_saw_it(
    there: There, percent: int | None, shares: dict[str, int]
) -> None:
    both = there.serving.write(beside(there.first(), 10))
    there.until_shares(v1=90, v2=10)
    there.patch({PERCENT: percent}, "kubectl-edit")
    seen = there.serving.read(NAME)
    assert seen.edited.startswith("its InferenceService was edited by " + ("kubectl-edit at 20" if percent else ""))
    assert {name: served.weight for name, served in seen.versions.items()} == shares
    there.keep()
    with pytest.raises(Conflict, match="its InferenceService was edited"):
        there.serving.write(both.but(reason="a lease is renewed"))
    assert asked_of(there.service())[:2] == ("v2", percent)
    decided = there.serving.write(without(seen))
    assert (decided.edited, there.serving.read(NAME)) == ("", decided)
    there.until_shares(v1=100)


def test_an_edit_that_was_undone_is_none(there: There) -> None:
    both = there.serving.write(beside(there.first(), 10))
    there.until_shares(v1=90, v2=10)
    there.patch({PERCENT: 40}, "kubectl-edit")
    there.patch({PERCENT: 10}, "kubectl-edit")
    assert there.serving.read(NAME) == both


def test_who_deletes_the_lease_deletes_the_endpoint_and_it_can_begin_again(there: There) -> None:
    both = there.serving.write(beside(there.first(), 10))
    there.objects.delete(LEASE, NAME)
    wait_for(lambda: there.objects.get(SERVICE, NAME) is None, SECONDS)
    wait_for(lambda: there.revisions() == 0, SECONDS)
    assert there.serving.read(NAME).generation == 0
    assert there.serving.observe(NAME) == {}
    with pytest.raises(Conflict, match="Lease was deleted"):
        there.serving.write(both)
    again = there.serving.write(stable(there.serving.read(NAME), "1"))
    assert again.generation >= both.generation
    there.until_ready("v1")


def test_an_inference_service_that_was_deleted_comes_again_with_its_champion_first(there: There) -> None:
    """With the canary's template first it would get everything."""
    there.serving.write(beside(there.first(), 10))
    there.until_shares(v1=90, v2=10)
    before = len(there.around.history)
    there.objects.delete(SERVICE, NAME)
    wait_for(lambda: there.objects.get(SERVICE, NAME) is None, SECONDS)
    there.until_shares(v1=100)
    there.until_shares(v1=90, v2=10)
    assert most(there.around.history[before:], "v2") == 10


def test_a_write_that_was_killed_is_put_right(there: There) -> None:
    """Between the wanted state and what runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(there.serving, "_approach", lambda endpoint, accepted="": None)
        state = there.serving.write(stable(there.serving.read(NAME), "1"))
    assert untidy(there) == "v1 is missing"
    there.keep()
    wait_for(lambda: there.seen("v1").ready, SECONDS)
    wait_for(lambda: bool(there.status().get("latestRolledoutRevision")), SECONDS)
    assert untidy(there) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(there.serving, "_approach", lambda endpoint, accepted="": None)
        there.serving.write(beside(state, 10))
    assert untidy(there) == "v2 is to have 0 %"
    there.until_shares(v1=90, v2=10)
    assert untidy(there) == ""
    there.patch({PERCENT: 40}, "kubectl-edit")
    assert untidy(there) == ""  # people's


def untidy(there: There) -> str:
    """What the reconciler would find."""
    homes = {NAME: there.home()}
    return there.serving.untidy([there.serving.stated(homes[NAME])], homes)[NAME]


class Untold:
    """A registry that nobody tells."""

    def tell(self, champions: Mapping[str, str]) -> None:
        """Who is champion stays where it is."""


def test_the_reconciler_takes_a_canary_back_and_brings_it_to_an_end(there: There, tmp_path: Path) -> None:
    lease = Lease(owner="run", seconds=15, renewed=1)
    state = there.serving.write(beside(there.first(), 0).but(lease=lease))
    there.until_ready("v2")
    there.serving.write(beside(state, 10))
    there.until_shares(v1=90, v2=10)
    said, now = list[str](), [0.0]
    keeper = Keeper(there.serving, LocalStore(f"file://{tmp_path}"), Untold(), said.append, lambda: now[0])
    keeper.look({NAME: there.home()})
    now[0] += 16
    keeper.look({NAME: there.home()})
    assert said == ["detector: v2 was taken back: run run did not renew its lease of 15 s."]

    def settled() -> bool:
        now[0] += 6
        keeper.settle({NAME: there.home()})
        return asked_of(there.service())[:2] == ("v1", 100)

    wait_for(settled, SECONDS)
    assert said[1:] == ["detector: v1 is to have 100 %"]
    wait_for(lambda: there.around.shares == {"v1": 100}, SECONDS)


def test_an_endpoint_without_a_version_runs_nothing(there: There) -> None:
    first = there.first()
    empty = there.serving.write(first.but(stable=None, versions={}))
    wait_for(lambda: there.objects.get(SERVICE, NAME) is None, SECONDS)
    wait_for(lambda: there.serving.url(NAME) == "", SECONDS)
    assert there.serving.observe(NAME) == {}
    there.serving.write(stable(empty, "2", "q"))
    there.until_ready("v2")


def test_what_cannot_be_is_refused_and_changes_nothing(there: There) -> None:
    first = there.first()
    three = beside(first, 10).versions | {"v3": Served(release=release("3"), weight=0)}
    for versions in (three, beside(first, 100).versions, {"v1": first.versions["v1"].but(weight=40)}):
        with pytest.raises(UserError, match="one canary with less than 100 %"):
            there.serving.write(first.but(versions=versions))
    with pytest.raises(
        Conflict, match=r"serves s3://bucket/artifacts/p\.json as v1, not s3://bucket/artifacts/q\.json"
    ):
        there.serving.write(stable(first, "1", "q"))
    assert there.serving.read(NAME) == first


def test_a_lease_that_is_not_ours_is_left_alone(there: There) -> None:
    foreign = {"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": {"name": NAME}, "spec": {}}
    there.objects.create(LEASE, foreign)
    with pytest.raises(Corrupt, match="not ours"):
        there.serving.read(NAME)
