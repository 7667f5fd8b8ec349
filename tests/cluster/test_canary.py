"""Rollouts on a real cluster: pods, the gateway, Prometheus, and users who ask all the time and never ask twice."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
from kfp_flywheel.components.rollout.diary import Ended
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.kserve.build import SERVICE
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.prometheus.telemetry import Prometheus
from kfp_flywheel.components.runtime.artifacts import ModelPackage, Release
from kfp_flywheel.components.runtime.errors import PlatformError
from kfp_flywheel.components.runtime.ports import Counts
from kfp_flywheel.components.runtime.wiring import World, connect
from kfp_flywheel.components.serving.client import infer
from kfp_flywheel.pipelines.demo.broken import broken
from kfp_flywheel.pipelines.traffic import Sent, send
from kubernetes import client

from tests.canaries import release_of, roll
from tests.misbehaving import greedy, labelled_by, never_ready, slow
from tests.servers import S3
from tests.tiny import tiny_images, tiny_package
from tests.waiting import wait_for

from .fixtures import a_namespace, platform_on
from .prometheus import ADDRESS
from .prometheus import Prometheus as Scraper

RATE = 60.0
QUICK: dict[str, object] = {
    "step_requests": 20,
    "error_margin": 0.1,
    "slow_margin": 0.3,
    "replays": 0,
    "max_seconds": 180.0,
    "ready_timeout_s": 90.0,
}


@pytest.fixture(scope="module")
def world(cluster: client.ApiClient, s3: S3, serve_image: str, prometheus: Scraper) -> Iterator[World]:
    """A namespace with a platform of its own, for all tests here."""
    with a_namespace(cluster) as namespace:
        yield connect(platform_on(namespace, s3, serve=serve_image))


class Users:
    """What users were answered so far."""

    def __init__(self, stable: str = "v1") -> None:
        self.sent: list[Sent] = []
        self.stable = stable

    def failed(self, *versions: str) -> list[Sent]:
        """Requests that these versions, or nobody, failed to answer."""
        return [one for one in list(self.sent) if one.status != 200 and one.version in versions]

    def asked(self, version: str) -> int:
        return sum(one.version == version for one in list(self.sent))


@contextmanager
def users(world: World, endpoint: str, rate: float = RATE) -> Iterator[Users]:
    """Users ask at random times meanwhile; each asks once."""
    seen, over = Users(), threading.Event()
    url, images = world.serving.url(endpoint), tiny_images(120)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(send, url, endpoint, images, rate, 0, 0, seen.sent.append, over)
        try:
            yield seen
        finally:
            over.set()
            work.result()


def install(world: World, endpoint: str, champion: Release) -> None:
    """Make a release the first champion."""
    ended = roll(world, champion, None, f"{endpoint}-first", print, **QUICK, endpoint=endpoint)
    assert ended.decision == "promote"


def weights(world: World, endpoint: str) -> dict[str, int]:
    return {name: served.weight for name, served in world.serving.read(endpoint).versions.items()}


def services(world: World, endpoint: str) -> set[str]:
    """The InferenceServices that are left of an endpoint."""
    assert isinstance(world.serving, KServe)
    found = world.serving.objects.list(SERVICE, f"flywheel/endpoint={endpoint}")
    return {item["metadata"]["name"] for item in found if "deletionTimestamp" not in item["metadata"]}


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


def test_a_good_canary_is_promoted_and_its_predecessor_kept_for_a_fast_way_back(world: World) -> None:
    ended, seen, two = tried(world, "good", lambda package: tiny_package(world.store, bias=1.001))
    assert (ended.decision, ended.verdict) == ("promote", "canary"), ended.reason
    assert seen.failed("v1", "v2", "none") == []
    assert weights(world, "good") == {"v2": 100}
    assert world.serving.read("good").champion == two
    assert services(world, "good") == {"good-v1", "good-v2"}
    assert "kept without pods" in world.serving.observe("good")["v1"].reason
    assert infer(world.serving.url("good"), "good", tiny_images()[0]).version == "v2"


def test_errors_take_it_back(world: World) -> None:
    ended, seen, _ = tried(world, "errors", lambda package: broken(world.store, package, 0.2))
    assert ended.decision == "rollback"
    assert "The canary is worse" in ended.reason
    assert "failures" in ended.reason
    assert 0 < len(seen.failed("v2")) < 30
    taken_back(world, "errors", seen)


def test_slowness_takes_it_back(world: World) -> None:
    ended, seen, _ = tried(world, "slow", lambda package: slow(world.store, package), step_requests=100)
    assert ended.decision == "rollback"
    assert "answers slower than" in ended.reason
    taken_back(world, "slow", seen)


def test_silent_harm_is_found_in_the_shadow_without_a_request_of_a_user(world: World) -> None:
    package = tiny_package(world.store)
    labels = labelled_by(world.store, package)
    one = release_of(world.store, "1", package, dataset=labels)
    worse = release_of(world.store, "2", tiny_package(world.store, bias=-1.0), dataset=labels)
    install(world, "silent", one)
    with users(world, "silent") as seen:
        ended = roll(world, worse, one, "silent", print, **QUICK | {"replays": 100}, endpoint="silent")
    assert ended.decision == "rollback"
    assert "In the shadow the canary is worse" in ended.reason
    assert seen.asked("v2") == 0
    taken_back(world, "silent", seen)


def test_one_that_is_never_ready_is_taken_back_for_its_own_reason(world: World) -> None:
    other = tiny_package(world.store, bias=3.0)
    ended, seen, _ = tried(
        world, "unready", lambda package: never_ready(world.store, package, other), ready_timeout_s=20
    )
    assert ended.decision == "rollback"
    assert "did not answer within 20 s" in ended.reason
    assert "golden" in ended.reason
    taken_back(world, "unready", seen)


def test_one_that_eats_its_memory_is_taken_back(world: World) -> None:
    ended, seen, _ = tried(world, "greedy", lambda package: greedy(world.store, package, 2.0))
    assert ended.decision == "rollback"
    taken_back(world, "greedy", seen)


def test_one_that_crashes_again_and_again_is_taken_back(world: World) -> None:
    package = tiny_package(world.store)
    one, two = (
        release_of(world.store, "1", package),
        release_of(world.store, "2", tiny_package(world.store, bias=1.001)),
    )
    install(world, "crashing", one)
    over = threading.Event()

    def crash() -> None:
        wait_for(lambda: seen.asked("v2") > 5, 120)
        while not over.wait(0.2):
            for process in servers("crashing", "v2"):
                process.kill()

    with users(world, "crashing") as seen, ThreadPoolExecutor(1) as pool:
        crashing = pool.submit(crash)
        settings = QUICK | {"step_requests": 1000}
        ended = roll(world, two, one, "crashing", print, **settings, endpoint="crashing")
        over.set()
        crashing.result()
    assert ended.decision == "rollback"
    taken_back(world, "crashing", seen)


def servers(endpoint: str, version: str) -> Iterator[psutil.Process]:
    """The processes of a version's model servers: pods live on this machine."""
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except psutil.Error:
            continue
        if (env.get("FLYWHEEL_NAME"), env.get("FLYWHEEL_VERSION")) == (endpoint, version):
            yield process


def test_a_version_can_be_asked_for_by_name_and_is_not_compared_by_that(world: World) -> None:
    one = release_of(world.store, "1", tiny_package(world.store))
    install(world, "named", one)
    url, image = world.serving.url("named"), tiny_images()[0]
    alone = world.serving.observe("named")["v1"].url
    assert alone == f"{url}/versions/v1"

    def counted() -> int:
        try:
            return world.telemetry.counts("named")["v1"].requests
        except PlatformError:  # nobody has scraped it yet
            return 0

    infer(url, "named", image)
    wait_for(lambda: counted() > 0, 20)
    before = counted()
    for _ in itertools.repeat(None, 5):
        assert infer(alone, "named", image).version == "v1"
    infer(url, "named", image)
    wait_for(lambda: counted() == before + 1, 20)
