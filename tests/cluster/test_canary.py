"""Rollouts on a real cluster: pods, the gateway, Prometheus, and users who ask all the time and never ask twice."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kfp_flywheel.components.rollout.diary import Ended
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.kserve import build
from kfp_flywheel.components.runtime.adapters.kserve.build import COPIER, ROUTE
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.prometheus.telemetry import Prometheus
from kfp_flywheel.components.runtime.artifacts import ModelPackage, Release
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.ports import Counts
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.components.serving.client import infer
from kfp_flywheel.pipelines.demo.broken import broken
from kubernetes import client

from tests.canaries import release_of, roll
from tests.misbehaving import greedy, labelled_by, never_ready, slow
from tests.tiny import tiny_images, tiny_package
from tests.waiting import wait_for

from .control import ControlPlane
from .installing import overlay
from .prometheus import ADDRESS
from .rollouts import QUICK, Users, install, servers, services, users, weights


def tried(
    world: World, endpoint: str, make: Callable[[ModelPackage], ModelPackage], **settings: object
) -> tuple[Ended, Users, Release]:
    """Roll a release that was made of the champion's package out beside it."""
    package = tiny_package(world.store)
    one, two = release_of(world.store, "1", package), release_of(world.store, "2", make(package))
    install(world, endpoint, one)
    with users(world, endpoint) as seen:
        wait_for(lambda: seen.asked("v1") > 200)
        ended = roll(world, two, one, f"{endpoint}-canary", print, **QUICK | settings, endpoint=endpoint)
        before = len(seen.sent)
        wait_for(lambda: len(seen.sent) > before + 50)
    return ended, seen, two


def counted_by_traefik(world: World, endpoint: str) -> Counts:
    """What the gateway says of the champion: with requests that never reached a server."""
    assert isinstance(world.serving, KServe)
    return Prometheus(f"prometheus+http://{ADDRESS}?dialect=traefik", world.serving.namespace).counts(endpoint)["v1"]


def taken_back(world: World, endpoint: str, seen: Users) -> None:
    """The champion serves alone, has failed nobody, and nothing is left of the canary."""
    assert weights(world, endpoint) == {"v1": 100}
    assert world.serving.read(endpoint).lease is None
    assert seen.failed("v1") == []
    wait_for(lambda: counted_by_traefik(world, endpoint).requests >= seen.asked("v1"), 20)
    assert counted_by_traefik(world, endpoint).failures == 0, "what nobody answered was the canary's to answer"
    assert len(seen.failed("v2", "none")) < 60
    wait_for(lambda: services(world, endpoint) == {f"{endpoint}-v1"}, 30)
    assert ledger.history(world.store, endpoint)[-1].weights == {"v1": 100}


def test_a_good_canary_is_promoted_and_its_predecessor_kept_for_a_fast_way_back(served: World) -> None:
    ended, seen, two = tried(served, "good", lambda package: tiny_package(served.store, bias=1.001))
    assert (ended.decision, ended.verdict) == ("promote", "canary"), ended.reason
    assert seen.failed("v1", "v2", "none") == []
    assert weights(served, "good") == {"v2": 100}
    assert served.serving.read("good").champion == two
    assert services(served, "good") == {"good-v1", "good-v2"}
    assert "kept without pods" in served.serving.observe("good")["v1"].reason
    assert infer(served.serving.url("good"), "good", tiny_images()[0]).version == "v2"


def test_the_next_version_of_the_manifests_fails_nobody(
    plane: ControlPlane, cluster: client.ApiClient, served: World, tmp_path: Path
) -> None:
    assert isinstance(served.serving, KServe)
    namespace, core = served.serving.namespace, client.CoreV1Api(cluster)

    def pods() -> set[tuple[str, int]]:
        found = core.list_namespaced_pod(namespace, label_selector="flywheel/endpoint=upgraded").items
        return {(pod.metadata.uid, pod.status.container_statuses[0].restart_count) for pod in found}

    def applied(version: str) -> None:
        labels = [{"pairs": {"app.kubernetes.io/version": version}}]
        plane.kubectl("apply", "-k", str(overlay(tmp_path, "gke", namespace, labels=labels)))
        # Pods of tests mount folders of their host.
        plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce-")

    applied("0.1.0")
    install(served, "upgraded", release_of(served.store, "1", tiny_package(served.store)))
    before = pods()
    with users(served, "upgraded") as seen:
        wait_for(lambda: seen.asked("v1") > 100)
        applied("9.9.9")
        wait_for(lambda: seen.asked("v1") > 600)
    assert {one.status for one in seen.sent} == {200}
    assert (len(before), pods()) == (1, before)


def test_errors_take_it_back(served: World) -> None:
    ended, seen, _ = tried(served, "errors", lambda package: broken(served.store, package, 0.2))
    assert ended.decision == "rollback"
    assert "The canary is worse" in ended.reason
    assert "failures" in ended.reason
    assert 0 < len(seen.failed("v2")) < 30
    taken_back(served, "errors", seen)


def left_of_copying(world: World) -> set[str]:
    """Names of trials, and of TraefikServices."""
    assert isinstance(world.serving, KServe)
    routes = {item["metadata"]["name"] for item in world.serving.objects.list(ROUTE, "")}
    copiers = {item["metadata"]["name"] for item in world.serving.objects.list(COPIER, "")}
    return {name for name in routes if "copied" in name} | copiers


def test_in_the_shadow_of_live_requests_errors_are_found_and_no_user_gets_one(served: World) -> None:
    """Traefik accepts Gateway API's way to copy and fails then: that is seen beside the endpoint; its own is used."""
    settings: dict[str, object] = {"canary_steps": "0,10", "step_requests": 200}
    ended, seen, _ = tried(served, "shadow", lambda package: broken(served.store, package, 0.2), **settings)
    assert ended.decision == "rollback"
    assert "failures" in ended.reason
    assert seen.asked("v2") == 0
    assert [one for one in seen.sent if one.status != 200] == []
    assert weights(served, "shadow") == {"v1": 100}
    wait_for(lambda: left_of_copying(served) == set(), 30)


def test_from_the_shadow_a_good_canary_goes_on_to_its_share(served: World) -> None:
    settings: dict[str, object] = {"canary_steps": "0,50", "step_requests": 60}
    ended, seen, _ = tried(served, "lit", lambda package: tiny_package(served.store, bias=1.001), **settings)
    assert ended.decision == "promote", ended.reason
    assert [one for one in seen.sent if one.status != 200] == []
    reasons = [entry.reason for entry in ledger.history(served.store, "lit")]
    assert "v2 has a copy of each request." in reasons
    assert "v2 has 50 % of the traffic." in reasons
    wait_for(lambda: left_of_copying(served) == set(), 30)


def test_where_the_gateway_copies_nothing_that_is_said(served: World, monkeypatch: pytest.MonkeyPatch) -> None:
    true = build.copier

    def copies_nothing(*given: Any) -> dict[str, Any]:
        made = true(*given)
        made["spec"]["mirroring"]["mirrors"] = []
        return made

    monkeypatch.setattr(build, "copier", copies_nothing)
    one, two = (release_of(served.store, str(n), tiny_package(served.store, bias=n)) for n in (1, 2))
    install(served, "dark", one)
    with pytest.raises(UserError, match="copies no requests to v2: RequestMirror and TraefikService were tried"):
        roll(served, two, one, "dark", print, **QUICK | {"canary_steps": "0,50"}, endpoint="dark")
    assert weights(served, "dark") == {"v1": 100}
    wait_for(lambda: left_of_copying(served) == set(), 30)


def test_slowness_takes_it_back(served: World) -> None:
    ended, seen, _ = tried(served, "slow", lambda package: slow(served.store, package, rounds=12), step_requests=100)
    assert ended.decision == "rollback", ended.reason
    assert "answers slower than" in ended.reason
    taken_back(served, "slow", seen)


def test_silent_harm_is_found_in_the_shadow_without_a_request_of_a_user(served: World) -> None:
    package = tiny_package(served.store)
    labels = labelled_by(served.store, package)
    one = release_of(served.store, "1", package, dataset=labels)
    worse = release_of(served.store, "2", tiny_package(served.store, bias=-1.0), dataset=labels)
    install(served, "silent", one)
    with users(served, "silent") as seen:
        ended = roll(served, worse, one, "silent", print, **QUICK | {"replays": 100}, endpoint="silent")
    assert ended.decision == "rollback"
    assert "In the shadow the canary is worse" in ended.reason
    assert seen.asked("v2") == 0
    taken_back(served, "silent", seen)


def test_one_that_is_never_ready_is_taken_back_for_its_own_reason(served: World) -> None:
    other = tiny_package(served.store, bias=3.0)
    ended, seen, _ = tried(
        served, "unready", lambda package: never_ready(served.store, package, other), ready_timeout_s=20
    )
    assert ended.decision == "rollback"
    assert "did not answer within 20 s" in ended.reason
    assert "golden" in ended.reason
    taken_back(served, "unready", seen)


@pytest.mark.faults
def test_one_that_eats_its_memory_is_taken_back(served: World) -> None:
    ended, seen, _ = tried(served, "greedy", lambda package: greedy(served.store, package, 2.0))
    assert ended.decision == "rollback"
    taken_back(served, "greedy", seen)


@pytest.mark.faults
def test_one_that_crashes_again_and_again_is_taken_back(served: World) -> None:
    package = tiny_package(served.store)
    one, two = (
        release_of(served.store, "1", package),
        release_of(served.store, "2", tiny_package(served.store, bias=1.001)),
    )
    install(served, "crashing", one)
    over = threading.Event()

    def crash() -> None:
        wait_for(lambda: seen.asked("v2") > 5, 120)
        while not over.wait(0.2):
            for process in servers("crashing", "v2"):
                process.kill()

    with users(served, "crashing") as seen, ThreadPoolExecutor(1) as pool:
        crashing = pool.submit(crash)
        settings = QUICK | {"step_requests": 1000}
        ended = roll(served, two, one, "crashing", print, **settings, endpoint="crashing")
        over.set()
        crashing.result()
    assert ended.decision == "rollback"
    taken_back(served, "crashing", seen)


def test_a_version_can_be_asked_for_by_name_and_is_not_compared_by_that(served: World) -> None:
    one = release_of(served.store, "1", tiny_package(served.store))
    install(served, "named", one)
    url, image = served.serving.url("named"), tiny_images()[0]
    alone = served.serving.observe("named")["v1"].url
    assert alone == f"{url}/versions/v1"

    def counted() -> int:
        try:
            return served.telemetry.counts("named")["v1"].requests
        except PlatformError:  # nobody has scraped it yet
            return 0

    infer(url, "named", image)
    wait_for(lambda: counted() > 0, 20)
    before = counted()
    for _ in itertools.repeat(None, 5):
        assert infer(alone, "named", image).version == "v1"
    infer(url, "named", image)
    wait_for(lambda: counted() == before + 1, 20)
