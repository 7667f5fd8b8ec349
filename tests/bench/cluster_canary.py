"""Canaries on a real cluster: how soon a decision takes effect, how soon harm is found, what the reconciler costs."""

import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby

import psutil
from kfp_flywheel.components.rollout.evidence import Look, Replayed, judge
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.kserve.build import ROUTE, SERVICE
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.artifacts import Release
from kfp_flywheel.components.runtime.config import Platform, Rollout
from kfp_flywheel.components.runtime.ports import Counts, EndpointState, Lease, Served
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.components.serving.client import answered_by
from kfp_flywheel.components.serving.metrics import Rows
from kfp_flywheel.pipelines.demo.broken import broken
from kfp_flywheel.pipelines.traffic import Sent
from kubernetes import client

from tests.canaries import release_of, roll
from tests.cluster.rollouts import install, users
from tests.releases import release, stable
from tests.servers import free_port
from tests.tiny import tiny_package
from tests.waiting import wait_for

from .figures import Figure, median

ENDPOINTS = 50
LEASE_S = 2.0
WATCHED_S = 60.0
KEEPER = "kfp_flywheel.components.serving.keeper"


def quiet(line: str) -> None:
    """Nobody listens."""


def both(state: EndpointState, canary: Release, weight: int) -> EndpointState:
    """The state with a canary that has a share of the traffic."""
    versions = {"v1": state.versions["v1"].but(weight=100 - weight), "v2": Served(release=canary, weight=weight)}
    return state.but(versions=versions)


def remove(world: World, endpoint: str) -> None:
    """End an endpoint, and wait until its pods are gone: the node is small."""
    assert isinstance(world.serving, KServe)
    world.serving.objects.delete(ROUTE, endpoint)
    core = client.CoreV1Api(world.serving.objects.api.api_client)
    name = f"serving.kserve.io/inferenceservice in ({endpoint}-v1, {endpoint}-v2)"
    wait_for(lambda: not core.list_namespaced_pod(world.serving.namespace, label_selector=name).items, 120)


def beside(world: World, endpoint: str, one: Release, two: Release) -> EndpointState:
    """A champion, and a canary that is ready and has no traffic."""
    install(world, endpoint, one)
    state = world.serving.write(both(world.serving.read(endpoint), two, 0))
    wait_for(lambda: "v2" in (seen := world.serving.observe(endpoint)) and seen["v2"].ready)
    return state


def effect(world: World) -> Figure:
    """From the call that writes weights until the gateway answers with the other version."""
    one, two = (release_of(world.store, str(n), tiny_package(world.store, bias=n)) for n in (1, 2))
    state = beside(world, "effect", one, two)
    url, samples = world.serving.url("effect"), []
    for number in range(20):
        weight, wanted = (100, "v2") if number % 2 == 0 else (0, "v1")
        changed: list[float] = []

        def watch(wanted: str = wanted, changed: list[float] = changed) -> None:
            while answered_by(url, "effect") != wanted:
                pass
            changed.append(time.perf_counter())

        watcher = threading.Thread(target=watch)
        start = time.perf_counter()
        watcher.start()
        state = world.serving.write(both(state, two, weight))
        watcher.join()
        samples.append(changed[0] - start)
        wait_for(lambda wanted=wanted: all(answered_by(url, "effect") == wanted for _ in range(50)))
    remove(world, "effect")
    return median("decision to new weights at the gateway", samples, "s", "<=", 0.5)


def errors(world: World, count: int) -> list[Figure]:
    """20 % errors at 20 requests a second, 10 % of them to the canary: from the first bad answer to the decision."""
    seconds, bad = [], []
    for number in range(count):
        endpoint, package = f"errors-{number}", tiny_package(world.store)
        one, two = (
            release_of(world.store, *given) for given in (("1", package), ("2", broken(world.store, package, 0.2)))
        )
        install(world, endpoint, one)
        with users(world, endpoint, 20.0) as seen:
            wait_for(lambda seen=seen: seen.asked("v1") > 150)
            ended = roll(world, two, one, f"{endpoint}-run", quiet, replays=0, endpoint=endpoint)
        failed = seen.failed("v2")
        print(f"{number + 1}: {ended.decision} after {len(failed)} bad answers: {ended.reason}", flush=True)
        at = ledger.history(world.store, endpoint)[-1].at
        seconds.append(
            at - min(one.at + one.seconds for one in failed) if ended.decision == "rollback" else float("inf")
        )
        bad.append(float(len(failed)))
        remove(world, endpoint)
    return [
        median("20 % errors: rolled back after the first bad answer", seconds, "s", "<=", 15),
        median("20 % errors: bad answers", bad, "", "<=", 4),
    ]


def rules(world: World) -> Figure:
    """The same canary with nobody who acts: when it would be taken back by our rules and by others' defaults."""
    package = tiny_package(world.store)
    one, two = (release_of(world.store, *given) for given in (("1", package), ("2", broken(world.store, package, 0.2))))
    world.serving.write(both(beside(world, "watched", one, two), two, 10))
    start = time.time()
    with users(world, "watched", 20.0) as seen:
        wait_for(lambda: time.time() - start > 330, 400)
    sent = [request for request in seen.sent if request.version in ("v1", "v2")]
    remove(world, "watched")
    bad = min(request.at + request.seconds for request in sent if request.status != 200)
    # Flagger: five minutes with less than 99 % success; Argo Rollouts' example: four with less than 95 %.
    flagger, argo = (start + by_minute(sent, start, *rule) - bad for rule in ((0.01, 5), (0.05, 4)))
    peer = f"Flagger's defaults {flagger:.0f} s, Argo Rollouts' {argo:.0f} s"
    return Figure(
        "20 % errors: decided after the first bad answer, on one stream", ours(sent) - bad, "s", "<=", 15, peer
    )


def by_minute(sent: Sequence[Sent], start: float, limit: float, times: int) -> float:
    """Seconds until a canary is taken back that fails more than a share of its requests in so many minutes."""
    minutes: defaultdict[int, list[bool]] = defaultdict(list)
    for request in sent:
        if request.version == "v2":
            minutes[int((request.at - start) // 60)].append(request.status != 200)
    failed = [minute for minute, answers in sorted(minutes.items()) if sum(answers) > limit * len(answers)]
    return 60.0 * (failed[times - 1] + 1) if len(failed) >= times else float("inf")


def ours(sent: Sequence[Sent]) -> float:
    """When the rollout's own rules take it back, looking each second, in seconds since the epoch."""
    rows, looks = Rows(), list[Look]()
    for second, answered in groupby(sorted(sent, key=lambda one: one.at), lambda one: int(one.at)):
        counts = {"v1": Counts(), "v2": Counts()}
        for one in answered:
            old, failed = counts[one.version], rows.failures(one.version, one.status)
            counts[one.version] = old.but(requests=old.requests + 1, failures=old.failures + failed)
        looks.append(Look(at=second + 1.0, weight=10, canary=counts["v2"], stable=counts["v1"]))
        if judge(Counts(), looks, Replayed(), Rollout()).decision == "rollback":
            return second + 1.0
    return float("inf")


def equals(world: World, count: int) -> list[Figure]:
    """Rollouts of a release that is as good as the champion, at 60 requests a second."""
    champion, decisions, seconds = release_of(world.store, "1", tiny_package(world.store)), [], []
    install(world, "equal", champion)
    with users(world, "equal") as seen:
        wait_for(lambda: seen.asked("v1") > 200)
        for number in range(2, count + 2):
            new = release_of(world.store, str(number), tiny_package(world.store, bias=1 + number / 1e4))
            start = time.monotonic()
            ended = roll(world, new, champion, f"equal-{number}", quiet, replays=0, max_seconds=300.0, endpoint="equal")
            seconds.append(time.monotonic() - start)
            decisions.append(ended.decision)
            print(f"{number - 1}: {ended.decision} in {seconds[-1]:.0f} s: {ended.reason}", flush=True)
            champion = new if ended.decision == "promote" else champion
    failed = [one for one in seen.sent if one.status != 200]
    peer = f"{count} rollouts in pods, 60 requests/s"
    return [
        Figure("A/A in pods: rolled back", decisions.count("rollback"), "", "<=", 1, peer),
        Figure("A/A in pods: promoted", decisions.count("promote"), "", ">=", 0.9 * count, peer),
        Figure("A/A in pods: requests that failed", len(failed), "", "<=", 0, f"of {len(seen.sent)}"),
        median("A/A in pods: seconds", seconds, "s", "<=", 120, peer),
    ]


@contextmanager
def keeping(platform: Platform, port: int) -> Iterator[psutil.Process]:
    """A reconciler as a process."""
    command = [sys.executable, "-m", KEEPER, f"--port={port}", f"--platform={platform.line()}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def _kept(port: int) -> float:
    """How many endpoints a reconciler says it keeps."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
        lines = answer.read().decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        if float(values["flywheel_reconciler_looked_seconds"]) > 0:
            return float(values["flywheel_reconciler_endpoints"])
    return 0.0


def reconciler(serving: KServe) -> list[Figure]:
    """What it costs to keep many endpoints, and how soon it has put right what it finds."""
    core = client.CoreV1Api(serving.objects.api.api_client)
    no_pods = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    core.create_namespaced_resource_quota(serving.namespace, no_pods)
    for number in range(ENDPOINTS):
        serving.write(stable(serving.read(f"e{number}"), "1").but(since=time.time()))
    leases, port = [], free_port()
    with keeping(serving.platform, port) as process:
        wait_for(lambda: _kept(port) == ENDPOINTS)
        for _ in range(5):
            state = serving.read("e0")
            lease = Lease(owner="run", seconds=LEASE_S, renewed=time.time())
            serving.write(
                both(state, release("2", "q"), 10).but(lease=lease, changed=time.time(), reason="for a bench")
            )
            start = time.monotonic()
            wait_for(lambda: serving.read("e0").lease is None)
            leases.append(time.monotonic() - start)
            wait_for(lambda: serving.objects.get(SERVICE, "e0-v2") is None)
        process.cpu_percent()
        time.sleep(WATCHED_S)
        load, memory = process.cpu_percent(), process.memory_info().rss / 2**20
    state = serving.read("e1")
    serving.write(both(state, release("2", "q"), 0))
    tidy, serving._tidy = serving._tidy, lambda *given: None  # type: ignore[method-assign]
    serving.write(serving.read("e1").but(versions=state.versions))  # as if it were killed before it could tidy up
    serving._tidy = tidy  # type: ignore[method-assign]
    start = time.monotonic()
    with keeping(serving.platform, port):
        wait_for(lambda: _kept(port) == ENDPOINTS)
        known = time.monotonic() - start
        wait_for(lambda: serving.objects.get(SERVICE, "e1-v2") is None)
        right = time.monotonic() - start
    peer = f"{ENDPOINTS} endpoints"
    return [
        median("expired lease to stable, beyond the lease", [took - LEASE_S for took in leases], "s", "<=", 2),
        Figure("reconciler's memory", memory, "MiB", "<=", 100, peer),
        Figure("reconciler's share of a core", load, "%", "<=", 1, f"{peer}, {WATCHED_S:g} s"),
        Figure(
            "restart to all endpoints right",
            right,
            "s",
            "<=",
            10,
            f"{peer}, one with a version left over; known after {known:.1f} s",
        ),
    ]


def figures(world: World, without_pods: KServe) -> list[Callable[[], list[Figure]]]:
    """What is measured, one after another: three quarters of an hour."""
    return [
        lambda: [effect(world)],
        lambda: reconciler(without_pods),
        lambda: errors(world, 10),
        lambda: [rules(world)],
        lambda: equals(world, 20),
    ]
