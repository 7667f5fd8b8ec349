"""A canary in which something dies, or somebody interferes: its endpoint keeps its champion, or gets a better one."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_flywheel.components.rollout import hand
from kfp_flywheel.components.rollout.claim import LEASE_S
from kfp_flywheel.components.rollout.diary import Ended
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.kserve.build import ROUTE
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.artifacts import Release
from kfp_flywheel.components.runtime.config import Pods
from kfp_flywheel.components.runtime.wiring import World, connect
from kubernetes import client

from tests.canaries import release_of, roll
from tests.servers import S3
from tests.tiny import tiny_package
from tests.waiting import wait_for

from .control import NODE, ControlPlane
from .fixtures import REPO, a_namespace, platform_on
from .node import SECOND, Node
from .prometheus import Prometheus
from .rollouts import QUICK, Users, answers, install, services, users, weights
from .test_keeper import keeping

AWAY_S = 4
SETTINGS = QUICK | {"step_requests": 150}
"""With which a canary is at work for a while before it can be decided on."""


def pair(world: World, endpoint: str) -> tuple[Release, Release]:
    """A champion that serves, and a release that is as good."""
    one = release_of(world.store, "1", tiny_package(world.store))
    install(world, endpoint, one)
    return one, release_of(world.store, "2", tiny_package(world.store, bias=1.001))


@contextmanager
def rolling(world: World, endpoint: str, **means: Any) -> Iterator[tuple[Future[Ended], Users]]:
    """A rollout at work whose canary has been asked already."""
    one, two = pair(world, endpoint)
    with users(world, endpoint) as seen, ThreadPoolExecutor(1) as pool:
        lines: list[str] = []
        settings = SETTINGS | means | {"endpoint": endpoint}
        work = pool.submit(roll, world, two, one, f"{endpoint}-run", lines.append, **settings)
        try:
            wait_for(lambda: seen.asked("v2") > 5 or work.done(), 120, "the canary's traffic")
            yield work, seen
        finally:
            with suppress(Exception):
                work.result(300)
            print(*lines, sep="\n")


def decided(world: World, endpoint: str, ended: Ended) -> None:
    """Who was decided for serves alone, and nothing else is left but the champion before."""
    champion = {"promote": "v2", "hold": "v1", "rollback": "v1"}[ended.decision]
    assert weights(world, endpoint) == {champion: 100}
    assert world.serving.read(endpoint).lease is None
    left = {f"{endpoint}-v1"} | ({f"{endpoint}-v2"} if champion == "v2" else set())
    wait_for(lambda: services(world, endpoint) == left, 30)
    assert ledger.history(world.store, endpoint)[-1].weights == {champion: 100}
    url = world.serving.url(endpoint)
    wait_for(lambda: answers(url, endpoint) == champion, 60)


def promoted_unseen(world: World, endpoint: str, work: Future[Ended], seen: Users) -> None:
    """The canary was promoted in spite of all, and no user was failed until the last one had asked."""
    ended = work.result(300)
    assert ended.decision == "promote", ended.reason
    assert seen.failed("v1", "v2", "none") == []
    decided(world, endpoint, ended)


def down_and_up(plane: ControlPlane, name: str, up: Callable[[], None]) -> None:
    plane.processes.stop(name)
    time.sleep(AWAY_S)  # the fault itself
    up()


@pytest.mark.faults
def test_the_api_server_is_restarted(served: World, plane: ControlPlane) -> None:
    with rolling(served, "api") as (work, seen):
        down_and_up(plane, "kube-apiserver", plane.api_server)
    promoted_unseen(served, "api", work, seen)


@pytest.mark.faults
def test_kserves_controller_is_away(served: World, plane: ControlPlane) -> None:
    with rolling(served, "kserve") as (work, seen):
        plane.processes.stop("kserve")
        wait_for(lambda: len(seen.sent) > 300, 60)
        plane.operators()
    promoted_unseen(served, "kserve", work, seen)


@pytest.mark.faults
def test_prometheus_comes_back_and_knows_nothing_of_before(served: World, prometheus: Prometheus) -> None:
    with rolling(served, "telemetry") as (work, seen):
        prometheus.stop()
        time.sleep(AWAY_S)  # the fault itself
        prometheus.forget()
        prometheus.start()
    promoted_unseen(served, "telemetry", work, seen)


@pytest.mark.faults
def test_telemetry_that_stays_silent_promotes_nothing(served: World, prometheus: Prometheus) -> None:
    prometheus.stop()
    try:
        one, two = pair(served, "silence")
        settings = SETTINGS | {"max_seconds": 15.0}
        with users(served, "silence"):
            ended = roll(served, two, one, "silence-run", print, **settings, endpoint="silence")
    finally:
        prometheus.start()
    assert ended.decision == "hold"
    assert "nothing was shown either way" in ended.reason
    decided(served, "silence", ended)


@pytest.mark.faults
def test_the_gateway_is_restarted(served: World, plane: ControlPlane) -> None:
    with rolling(served, "gateway") as (work, seen):
        down_and_up(plane, "traefik", plane.operators)
        ended = work.result(300)
    assert ended.decision in ("promote", "hold"), ended.reason
    assert seen.failed("v1", "v2") == []
    decided(served, "gateway", ended)


@pytest.mark.faults
def test_the_champions_pod_is_killed(served: World) -> None:
    assert isinstance(served.serving, KServe)
    core = client.CoreV1Api(served.serving.objects.api.api_client)
    with rolling(served, "stable") as (work, _):
        core.delete_collection_namespaced_pod(
            served.serving.namespace, label_selector="app=isvc.stable-v1-predictor", grace_period_seconds=0
        )
        ended = work.result(300)
    assert ended.decision in ("promote", "hold"), ended.reason
    decided(served, "stable", ended)


@pytest.mark.faults
def test_the_clock_of_the_step_is_an_hour_off(served: World) -> None:
    with rolling(served, "clock", clock=lambda: time.time() - 3600) as (work, seen):
        work.result(300)
    promoted_unseen(served, "clock", work, seen)


def test_a_person_promotes_the_canary_and_the_rollout_stops(served: World, tmp_path: Path) -> None:
    platform = served.platform.plain() | {"pods": served.platform.pods.plain()}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(platform))
    command = [str(Path(sys.executable).parent / "flywheel"), "promote", "--endpoint=decided"]
    with rolling(served, "decided", error_margin=0.01) as (work, seen):
        subprocess.run([*command, f"--platform={tmp_path / 'cluster.yaml'}"], check=True)
        ended = work.result(60)
        assert (ended.decision, ended.verdict) == ("promote", "hand")
    assert seen.failed("v1", "v2", "none") == []
    decided(served, "decided", ended)


def test_the_route_is_edited_by_hand(served: World) -> None:
    assert isinstance(served.serving, KServe)
    objects = served.serving.objects
    with rolling(served, "edited") as (work, seen):
        rules = objects.get(ROUTE, "edited")["spec"]["rules"]  # type: ignore[index]
        for backend, weight in zip(rules[-1]["backendRefs"], (75, 25), strict=True):
            backend["weight"] = weight
        objects.api.patch_namespaced_custom_object(
            *objects.at(ROUTE), "edited", {"spec": {"rules": rules}}, field_manager="kubectl-edit"
        )
        ended = work.result(60)
    assert (ended.decision, ended.verdict) == ("hold", "changed")
    assert "its HTTPRoute was edited by kubectl-edit" in ended.reason
    assert "flywheel promote or flywheel rollback" in ended.reason
    assert weights(served, "edited") == {"v1": 75, "v2": 25}
    assert seen.failed("v1", "v2", "none") == []
    again = roll(served, served.serving.read("edited").versions["v2"].release, served.serving.read("edited").champion,
                 "edited-other", print, **SETTINGS, endpoint="edited")  # fmt: skip
    assert (again.decision, weights(served, "edited")) == ("hold", {"v1": 75, "v2": 25})
    hand.rollback(served.store, served.serving, "edited", "somebody", time.time())
    decided(served, "edited", ended)


def test_the_route_is_deleted_by_hand(served: World) -> None:
    assert isinstance(served.serving, KServe)
    with rolling(served, "deleted") as (work, _):
        served.serving.objects.delete(ROUTE, "deleted")
        ended = work.result(60)
    assert (ended.decision, ended.verdict) == ("hold", "changed")
    assert ended.reason == "the champion was v1 when this rollout began and is none now."
    wait_for(lambda: services(served, "deleted") == set(), 30)
    hand.rollback(served.store, served.serving, "deleted", "somebody", time.time())
    wait_for(lambda: answers(served.serving.url("deleted"), "deleted") == "v1", 60)
    assert weights(served, "deleted") == {"v1": 100}


def test_of_two_rollouts_at_once_one_goes_on(served: World) -> None:
    one, two = pair(served, "two")
    three = release_of(served.store, "3", tiny_package(served.store, bias=1.002))
    start = threading.Barrier(2)

    def work(release: Release) -> Ended:
        start.wait()
        return roll(served, release, one, f"two-{release.version}", print, **QUICK, endpoint="two")

    with users(served, "two") as seen, ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(work, (two, three)))
    assert sorted(one.decision for one in ended) == ["hold", "promote"], [one.reason for one in ended]
    (held,) = [one for one in ended if one.decision == "hold"]
    assert held.verdict == "changed"
    (winner,) = [release for release, found in zip((two, three), ended, strict=True) if found.decision == "promote"]
    assert weights(served, "two") == {f"v{winner.version}": 100}
    wait_for(lambda: services(served, "two") == {"two-v1", f"two-v{winner.version}"}, 30)
    assert seen.failed("v1", "v2", "v3", "none") == []


def killed_at(write: int, world: World, folder: Path, endpoint: str, one: Release, two: Release) -> int:
    """Run a rollout that is killed after so many writes; its exit code."""
    one.write(folder / "one")
    two.write(folder / "two")
    command = [sys.executable, "-m", "tests.cluster.dying", str(write), world.platform.line(), endpoint]
    command += [str(folder / "two"), str(folder / "one"), f"{endpoint}-run"]
    return subprocess.run(command, capture_output=True, cwd=REPO, timeout=300).returncode


def test_the_rollout_is_killed_and_the_reconciler_takes_its_canary_back(served: World, tmp_path: Path) -> None:
    one, two = pair(served, "killed")
    with users(served, "killed") as seen, keeping(served.platform, tmp_path):
        assert killed_at(8, served, tmp_path, "killed", one, two) == -signal.SIGKILL
        assert "v2" in weights(served, "killed")
        wait_for(lambda: weights(served, "killed") == {"v1": 100}, LEASE_S + 10)
        assert served.serving.read("killed").by == "flywheel serve"
        wait_for(lambda: services(served, "killed") == {"killed-v1"}, 30)
        ended = roll(served, two, one, "killed-other", print, **QUICK, endpoint="killed")
    assert ended.decision == "promote"
    assert seen.failed("v1", "v2", "none") == []
    decided(served, "killed", ended)


@pytest.mark.faults
@pytest.mark.timeout(2400)
def test_killed_at_any_write_it_is_run_again_and_no_user_sees_it(served: World, tmp_path: Path) -> None:
    """Without a reconciler: with it away nothing breaks but the lease."""
    write = 0
    while True:
        write += 1
        endpoint = f"any-{write}"
        one, two = pair(served, endpoint)
        with users(served, endpoint) as seen:
            code = killed_at(write, served, tmp_path, endpoint, one, two)
            ended = roll(served, two, one, f"{endpoint}-run", print, **QUICK, endpoint=endpoint)
        assert ended.decision == "promote", ended.reason
        assert seen.failed("v1", "v2", "none") == []
        decided(served, endpoint, ended)
        served.serving.objects.delete(ROUTE, endpoint)  # type: ignore[attr-defined]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert write > 10


@pytest.fixture
def second(node: Node) -> Iterator[str]:
    """Name of a second node."""
    node.second.up()
    node.second.ready()
    yield SECOND
    drain(node.plane, SECOND, "--force")
    node.second.down()
    node.plane.kubectl("delete", "node", SECOND)


def drain(plane: ControlPlane, name: str, *arguments: str) -> None:
    """What a person does before a node is serviced."""
    plane.kubectl("drain", name, "--delete-emptydir-data", "--timeout=150s", *arguments)


@pytest.mark.faults
def test_a_node_is_drained_and_no_user_sees_it(
    cluster: client.ApiClient, s3: S3, serve_image: str, prometheus: Prometheus, node: Node, second: str
) -> None:
    """The two pods of a version are on two nodes; those of one start anew on the other one. Of two, one may go when
    the other one answers, and it ends what it is at work on."""
    with a_namespace(cluster) as namespace:
        platform = platform_on(namespace, s3, serve=serve_image)
        drained = connect(platform.but(pods=Pods.of(**platform.pods.plain() | {"min_replicas": 2})))
        core = client.CoreV1Api(cluster)

        def pods(version: str) -> dict[str, str]:
            """Names and nodes."""
            found = core.list_namespaced_pod(namespace, label_selector=f"app=isvc.drained-{version}-predictor").items
            return {pod.metadata.name: pod.spec.node_name for pod in found if not pod.metadata.deletion_timestamp}

        def evict(name: str) -> bool:
            eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=name, namespace=namespace))
            try:
                core.create_namespaced_pod_eviction(name, namespace, eviction)
            except client.ApiException as error:
                if error.status == 429:  # the disruption budget: not now
                    return False
                raise
            return True

        with rolling(drained, "drained", step_requests=300, error_margin=0.03) as (work, seen):
            for version in ("v1", "v2"):
                wait_for(lambda version=version: sorted(pods(version).values()) == sorted((NODE, second)), 60)
            drain(node.plane, second)
            for version in ("v1", "v2"):
                wait_for(lambda version=version: list(pods(version).values()) == [NODE, NODE], 60)
            first, other = pods("v1")
            wait_for(lambda: evict(first), 60, "its successor to answer")
            assert not evict(other), "the last one that answers may not go"
            wait_for(lambda: evict(other), 60, "the other one to be replaced")
            assert not work.done(), "all of it happened to a canary"
        promoted_unseen(drained, "drained", work, seen)
