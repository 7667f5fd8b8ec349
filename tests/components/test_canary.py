"""A canary beside the stable: promoted, taken back or held as the evidence says, and never two owners."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from kfp_flywheel.components.rollout import canary as canaries
from kfp_flywheel.components.rollout.canary import Canary, Means
from kfp_flywheel.components.rollout.evidence import Replayed
from kfp_flywheel.components.rollout.stage import run
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.artifacts import Lineage, Release, Resolution, RolloutReport
from kfp_flywheel.components.runtime.config import Platform, Rollout
from kfp_flywheel.components.runtime.errors import FlywheelError, PlatformError
from kfp_flywheel.components.runtime.ports import Counts, EndpointState, Lease, Observed, Served
from kfp_flywheel.components.runtime.wiring import World, connect
from kfp_flywheel.components.serving.client import infer
from kfp_flywheel.components.serving.serve import serving
from kfp_flywheel.pipelines.demo.broken import broken

from tests.canaries import release_of, tiny_pair
from tests.misbehaving import labelled_by, slow
from tests.releases import release, with_champion
from tests.tiny import tiny_images, tiny_package
from tests.waiting import wait_for

URL = "http://127.0.0.1:1"
ONE, TWO = release("1"), release("2")
QUICK: dict[str, object] = {"step_requests": 20, "error_margin": 0.1, "slow_margin": 0.3, "look_s": 0.2, "replays": 5}
"""Settings with which a canary is decided on after some dozens of requests."""


class Traffic:
    """Telemetry whose counts grow by the same at each look; `weights` are those that the endpoint had then."""

    def __init__(self, world: World, failed: int = 0) -> None:
        self.world, self.failed, self.looks = world, failed, 0
        self.total = {"v1": Counts(requests=1000, within={"0.01": 950, "0.1": 1000, "+Inf": 1000})}
        self.weights: list[int] = []
        self.silent, self.copies = False, True

    def counts(self, endpoint: str) -> dict[str, Counts]:
        if self.silent:
            raise PlatformError("the gateway does not answer.")
        state = self.world.serving.read(endpoint)
        canary = state.versions["v2"].weight if "v2" in state.versions else 0
        self.weights.append(canary)
        copied = 100 if state.shadow and self.copies else canary
        for version, asked, failed in (("v1", 100 - canary, 0), ("v2", copied, self.failed if copied else 0)):
            old = self.total.get(version, Counts(within=dict.fromkeys(("0.01", "0.1", "+Inf"), 0)))
            slow = asked // 20
            within = {"0.01": old.within["0.01"] + asked - slow}
            within |= {edge: old.within[edge] + asked for edge in ("0.1", "+Inf")}
            self.total[version] = Counts(requests=old.requests + asked, failures=old.failures + failed, within=within)
        return self.total


def taking_turns(world: World) -> Callable[[], str]:
    """A gateway that divides exactly as it is asked to."""
    turn = itertools.count()

    def answered_by() -> str:
        versions = world.serving.read("detector").versions
        weight = versions["v2"].weight if "v2" in versions else 0
        return "v2" if next(turn) * weight % 100 < weight else "v1"

    return answered_by


def means(world: World, traffic: Traffic, **changes: object) -> Means:
    given: dict[str, object] = {
        "store": world.store,
        "serving": world.serving,
        "telemetry": lambda: traffic,
        "ask": lambda url: "",
        "replay": lambda canary, stable, tick: Replayed(),
        "answered_by": taking_turns(world),
        "tell": print,
        "pause": lambda seconds: None,
    }
    return Means(**given | changes)  # type: ignore[arg-type]


def canary(world: World, traffic: Traffic, run: str = "run-2", settings: Rollout | None = None, **changes: object):  # type: ignore[no-untyped-def]
    chosen = settings or Rollout.of(look_s=1.0, max_requests=5000)
    return Canary(means(world, traffic, **changes), TWO, ONE, chosen, run)


@pytest.fixture
def attended(world: World) -> Iterator[World]:
    """v1 is champion; somebody holds the place of `flywheel serve`, and says that v1 and v2 are ready."""
    assert isinstance(world.serving, LocalServing)
    with world.serving.hold() as publish:
        publish(URL)
        world.serving.write(with_champion(world.serving.read("detector"), ONE))
        ready(world, v1=True, v2=True)
        yield world


def ready(world: World, **versions: bool) -> None:
    assert isinstance(world.serving, LocalServing)
    seen = {
        name: Observed(ready=is_ready, url=URL, reason="its model is broken") for name, is_ready in versions.items()
    }
    world.serving.report("detector", seen, {})


def state_of(world: World) -> EndpointState:
    return world.serving.read("detector")


def weights(state: EndpointState) -> dict[str, int]:
    return {name: served.weight for name, served in state.versions.items()}


def test_an_equal_canary_is_promoted_step_by_step_and_the_ledger_tells_it(attended: World) -> None:
    traffic = Traffic(attended)
    ended = canary(attended, traffic).roll()
    assert (ended.decision, ended.verdict) == ("promote", "canary")
    assert traffic.weights == sorted(traffic.weights)
    assert {0, 10, 50} == set(traffic.weights)
    state = state_of(attended)
    assert (state.stable, weights(state), state.lease) == ("v2", {"v2": 100}, None)
    entries = ledger.history(attended.store, "detector")
    assert [entry.weights for entry in entries] == [
        {"v1": 100, "v2": 0},
        {"v1": 90, "v2": 10},
        {"v1": 50, "v2": 50},
        {"v2": 100},
    ]
    assert entries[-1].at >= entries[0].at > 0
    assert "v2 was promoted: 1.0% more failures" in state.reason


SHADOWED = Rollout.of(canary_steps="0,50,100", step_requests=300, look_s=1.0, max_requests=5000)


def test_in_the_shadow_it_is_asked_what_others_are_and_nobody_gets_its_answers(attended: World) -> None:
    traffic = Traffic(attended)
    assert canary(attended, traffic, settings=SHADOWED).roll().decision == "promote"
    entries = ledger.history(attended.store, "detector")
    assert [(entry.weights["v2"], entry.reason) for entry in entries[1:3]] == [
        (0, "v2 has a copy of each request."),
        (50, "v2 has 50 % of the traffic."),
    ]
    assert state_of(attended).shadow is None


def test_one_that_fails_in_the_shadow_never_answers_anybody(attended: World) -> None:
    traffic = Traffic(attended, failed=20)
    assert canary(attended, traffic, settings=SHADOWED).roll().decision == "rollback"
    assert set(traffic.weights) == {0}


def test_without_copies_it_is_held(attended: World) -> None:
    traffic = Traffic(attended)
    traffic.copies = False
    now = [time.time()]

    def pause(seconds: float) -> None:
        now[0] += seconds

    ended = canary(attended, traffic, settings=SHADOWED, clock=lambda: now[0], pause=pause).roll()
    assert (ended.decision, set(traffic.weights)) == ("hold", {0})
    assert ended.reason == "the gateway copied none of 200 requests; take 0 out of canary_steps."


def test_a_gateway_that_does_not_divide_holds_it(attended: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "DIVIDED_S", 0.0)
    traffic = Traffic(attended)
    ended = canary(attended, traffic, answered_by=lambda: "v1").roll()
    assert (ended.decision, traffic.looks) == ("hold", 0)
    assert ended.reason.startswith("the traffic is not divided as it should be: 0 of 100 answers came from v2")
    assert weights(state_of(attended)) == {"v1": 100}


def test_one_that_comes_and_goes_has_no_traffic_while_it_is_away_and_is_taken_back(attended: World) -> None:
    traffic, naps = Traffic(attended), itertools.count()

    def blink(seconds: float) -> None:
        ready(attended, v1=True, v2=next(naps) % 4 < 2)

    ended = canary(attended, traffic, pause=blink).roll()
    assert ended.decision == "rollback"
    assert "v2 does not stay up: its model is broken" in ended.reason
    shares = [entry.weights.get("v2") for entry in ledger.history(attended.store, "detector")]
    assert shares.count(0) >= 3, "away, it has no traffic"


@pytest.mark.parametrize(("failed", "decision"), [(2, "rollback"), (0, "promote")])
def test_failures_take_it_back(attended: World, failed: int, decision: str) -> None:
    ended = canary(attended, Traffic(attended, failed)).roll()
    assert ended.decision == decision
    assert weights(state_of(attended)) == {"v1" if failed else "v2": 100}
    if failed:
        assert "canary 20.00%, stable 0.00% failures" in ended.reason
        assert state_of(attended).reason.startswith("v2 was rolled back: The canary is worse")


def test_harm_in_the_shadow_takes_it_back_before_any_traffic(attended: World) -> None:
    traffic = Traffic(attended)
    worse = Replayed(labelled=60, differences=(-0.4,) * 60)
    ended = canary(attended, traffic, replay=lambda canary, stable, tick: worse).roll()
    assert ended.decision == "rollback"
    assert set(traffic.weights) == {0}


def test_a_canary_that_never_answers_is_taken_back_with_its_own_reason(attended: World) -> None:
    ready(attended, v1=True, v2=False)
    ended = canary(attended, Traffic(attended), settings=Rollout.of(ready_timeout_s=0.05)).roll()
    assert ended.decision == "rollback"
    assert "v2 did not answer within 0.05 s: its model is broken" in ended.reason
    assert weights(state_of(attended)) == {"v1": 100}


def test_a_canary_that_does_not_stay_up_is_taken_back(attended: World) -> None:
    traffic = Traffic(attended)

    def fall(seconds: float) -> None:
        if 10 in traffic.weights:
            ready(attended, v1=True, v2=False)

    ended = canary(attended, traffic, pause=fall).roll()
    assert ended.decision == "rollback"
    assert "v2 does not stay up: its model is broken" in ended.reason


def test_silent_telemetry_decides_nothing_and_is_told(attended: World) -> None:
    traffic, told = Traffic(attended), list[str]()
    looks = 0

    def pause(seconds: float) -> None:
        nonlocal looks
        looks += 1
        traffic.silent = 3 < looks < 20

    ended = canary(attended, traffic, pause=pause, tell=told.append).roll()
    assert ended.decision == "promote"
    assert told.count("telemetry is silent: the gateway does not answer.") == 1
    assert looks > 25

    held = Traffic(attended)
    held.silent = True
    attended.serving.write(with_champion(state_of(attended), ONE))
    brief = Rollout.of(look_s=1.0, max_seconds=100.0)
    ended = canary(attended, held, run="run-3", settings=brief).roll()
    assert ended.decision == "hold"


def test_of_two_rollouts_one_works_and_the_other_leaves_it_alone(attended: World) -> None:
    first = Lease(owner="run-1", seconds=30, renewed=1.0)
    other = state_of(attended).versions | {"v3": Served(release=release("3"), weight=10)}
    attended.serving.write(state_of(attended).but(versions=other, lease=first))

    def renew(seconds: float) -> None:
        state = state_of(attended)
        attended.serving.write(state.but(lease=first.but(renewed=state.lease.renewed + 1)))  # type: ignore[union-attr]

    ended = canary(attended, Traffic(attended), pause=renew).roll()
    assert (ended.decision, ended.verdict) == ("hold", "changed")
    assert ended.reason == "run run-1 is at work at endpoint detector."
    assert "v2" not in state_of(attended).versions


def test_the_lease_of_a_rollout_that_is_gone_is_outlived(attended: World) -> None:
    gone = Lease(owner="run-1", seconds=0.05, renewed=1.0)
    attended.serving.write(state_of(attended).but(lease=gone))
    assert canary(attended, Traffic(attended)).roll().decision == "promote"


def by_hand(**changes: object) -> Callable[[EndpointState], EndpointState]:
    return lambda state: state.but(lease=None, by="somebody", **changes)


@pytest.mark.parametrize(
    ("change", "decision", "verdict", "reason"),
    [
        (
            by_hand(versions={"v1": Served(release=ONE, weight=100)}, reason="no."),
            "rollback",
            "hand",
            "by somebody: no.",
        ),
        (
            by_hand(stable="v2", versions={"v2": Served(release=TWO, weight=100)}, reason="yes."),
            *("promote", "hand", "v2 was promoted by somebody: yes."),
        ),
        (
            by_hand(stable="v3", versions={"v3": Served(release=release("3"), weight=100)}),
            *("hold", "changed", "the champion was v1 when this rollout began and is detector version 3 now."),
        ),
    ],
)
def test_a_decision_by_hand_stops_it_and_stands(
    attended: World, change: Callable[[EndpointState], EndpointState], decision: str, verdict: str, reason: str
) -> None:
    traffic = Traffic(attended)
    changed: list[EndpointState] = []

    def decide(seconds: float) -> None:
        if 10 in traffic.weights and not changed:
            changed.append(attended.serving.write(change(state_of(attended))))

    ended = canary(attended, traffic, pause=decide).roll()
    assert (ended.decision, ended.verdict) == (decision, verdict)
    assert reason in ended.reason
    assert state_of(attended) == changed[0]


def test_a_full_store_takes_the_canary_back_and_is_an_error(attended: World) -> None:
    traffic = Traffic(attended)
    broken_: list[bool] = []

    def fill(seconds: float) -> None:
        if 10 in traffic.weights and not broken_:
            folder = Path(attended.store.root.removeprefix("file://"), "rollouts")
            looks = next(folder.rglob("looks"))
            looks.rename(looks.with_name("moved"))
            looks.write_text("a file in the place of the folder")
            broken_.append(True)

    with pytest.raises(PlatformError, match="could not be written"):
        canary(attended, traffic, pause=fill).roll()
    assert weights(state_of(attended)) == {"v1": 100}
    assert state_of(attended).lease is None


def test_a_decision_that_was_not_acted_on_is_acted_on_without_new_traffic(attended: World) -> None:
    """A process that is killed between its last look and the wanted state leaves the looks behind."""

    class Killed(BaseException):
        pass

    one = canary(attended, Traffic(attended, failed=2))

    def die(reason: str) -> None:
        raise Killed

    one.claim.withdraw = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        one.roll()
    assert "v2" in state_of(attended).versions
    traffic = Traffic(attended)
    ended = canary(attended, traffic).roll()
    assert (ended.decision, traffic.weights) == ("rollback", [])
    assert weights(state_of(attended)) == {"v1": 100}
    assert canary(attended, traffic).roll() == ended  # and once more: it has ended


# With real model servers, a real gateway and real requests.


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    world = connect(Platform.local(tmp_path_factory.mktemp("platform")))
    with serving(world.platform) as url:
        yield world, url


@contextmanager
def asked(url: str, endpoint: str) -> Iterator[dict[str, int]]:
    """Four clients ask meanwhile, as quickly as they are answered; answers by version, and failures."""
    tally: dict[str, int] = {}
    over, lock, images = threading.Event(), threading.Lock(), tiny_images(100)

    def client(first: int) -> None:
        number = first
        while not over.wait(0.005):
            number += 1
            try:
                what = infer(url, endpoint, images[number % len(images)]).version
            except FlywheelError:
                what = "failed"
            with lock:
                tally[what] = tally.get(what, 0) + 1

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(client, 25 * number)
        try:
            yield tally
        finally:
            over.set()


def install(world: World, endpoint: str, champion: Release) -> None:
    world.serving.write(with_champion(world.serving.read(endpoint), champion))
    wait_for(lambda: world.serving.observe(endpoint).get("v1", Observed(ready=False)).ready)


def inputs(world: World, folder: Path, endpoint: str, new: Release, champion: Release) -> list[str]:
    folder.mkdir()
    new.write(folder / "release")
    lineage = Lineage(code="c", image="i", run="r")
    Resolution(id=f"res-{endpoint}", lineage=lineage, endpoint=endpoint, champion=champion, config="c").write(
        folder / "champion"
    )
    return [*(str(folder / name) for name in ("release", "champion", "report", "page")), f"config-{endpoint}"]


def test_a_real_canary_is_promoted_and_a_broken_one_taken_back(served: tuple[World, str], tmp_path: Path) -> None:
    world, url = served
    one, two = tiny_pair(world.store)
    install(world, "real", one)
    with asked(url, "real") as tally:
        given = inputs(world, tmp_path / "good", "real", two, one)
        settings = QUICK | {"endpoint": "real", "ready_timeout_s": 60.0}
        assert run(*given, world.platform.line(), "run-good", **settings) == "promote"
        report = RolloutReport.read(given[2])
        assert {check.name: check.outcome for check in report.checks}["errors within margin"] == "pass"
        assert "40 labelled" in str(report.checks) or "5 labelled" in str(report.checks)
        assert "Promoted" in Path(given[3]).read_text()
        assert tally.get("failed", 0) == 0
        package = broken(world.store, tiny_package(world.store, bias=1.002), 0.2)
        three = release_of(world.store, "3", package)
        given = inputs(world, tmp_path / "bad", "real", three, two)
        # Not in the shadow, which would find it before any traffic.
        assert run(*given, world.platform.line(), "run-bad", **settings | {"replays": 0}) == "rollback"
    state = world.serving.read("real")
    assert (state.champion, weights(state)) == (two, {"v2": 100})
    assert 0 < tally["failed"] < 40
    assert "failures" in RolloutReport.read(given[2]).reason


def test_in_the_shadow_a_broken_release_is_found_without_a_single_request_of_a_user(
    served: tuple[World, str], tmp_path: Path
) -> None:
    world, url = served
    one, _ = tiny_pair(world.store)
    install(world, "shadow", one)
    bad = release_of(world.store, "2", broken(world.store, tiny_package(world.store), 0.3))
    with asked(url, "shadow") as tally:
        wait_for(lambda: tally.get("v1", 0) > 300)
        given = inputs(world, tmp_path / "in", "shadow", bad, one)
        settings = QUICK | {"endpoint": "shadow", "ready_timeout_s": 60.0, "replays": 200}
        assert run(*given, world.platform.line(), "run-shadow", **settings) == "rollback"
    assert "In the shadow the canary is worse" in RolloutReport.read(given[2]).reason
    assert set(tally) == {"v1"}


def test_a_slow_release_is_taken_back(served: tuple[World, str], tmp_path: Path) -> None:
    world, url = served
    one, _ = tiny_pair(world.store)
    install(world, "slow", one)
    late = release_of(world.store, "2", slow(world.store, tiny_package(world.store)))
    with asked(url, "slow") as tally:
        wait_for(lambda: tally.get("v1", 0) > 300)
        given = inputs(world, tmp_path / "in", "slow", late, one)
        settings = QUICK | {"endpoint": "slow", "ready_timeout_s": 60.0, "replays": 0, "step_requests": 100}
        assert run(*given, world.platform.line(), "run-slow", **settings) == "rollback"
    assert "answers slower than" in RolloutReport.read(given[2]).reason
    assert (weights(world.serving.read("slow")), tally.get("failed", 0)) == ({"v1": 100}, 0)


@pytest.mark.parametrize(("bias", "decision"), [(-1.0, "rollback"), (1.001, "promote")])
def test_silent_harm_is_found_on_labelled_images_before_any_traffic(
    served: tuple[World, str], tmp_path: Path, bias: float, decision: str
) -> None:
    world, url = served
    package, endpoint = tiny_package(world.store), f"silent-{decision}"
    labels = labelled_by(world.store, package)
    one = release_of(world.store, "1", package, dataset=labels)
    two = release_of(world.store, "2", tiny_package(world.store, bias=bias), dataset=labels)
    install(world, endpoint, one)
    with asked(url, endpoint) as tally:
        given = inputs(world, tmp_path / "in", endpoint, two, one)
        settings = QUICK | {"endpoint": endpoint, "ready_timeout_s": 60.0, "replays": 100}
        assert run(*given, world.platform.line(), f"run-{decision}", **settings) == decision
    assert tally.get("failed", 0) == 0
    if decision == "rollback":
        assert "In the shadow the canary is worse" in RolloutReport.read(given[2]).reason
        assert tally.get("v2", 0) == 0


PROGRAM = """
import os, signal, sys
from kfp_flywheel.components.rollout import claim, stage
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
left, settings = int(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[9:])
claim.LEASE_S = float(settings.pop("lease_s"))
def dying(function):
    def call(*given, **named):
        global left
        result = function(*given, **named)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
LocalServing.write = dying(LocalServing.write)
LocalStore.put = dying(LocalStore.put)
stage.run(*sys.argv[2:8], sys.argv[8], **settings)
"""


def killed_at(write: int, world: World, given: list[str], name: str, endpoint: str, lease_s: float = 15.0) -> int:
    settings = QUICK | {"endpoint": endpoint, "ready_timeout_s": 60.0, "lease_s": lease_s}
    command = [sys.executable, "-c", PROGRAM, str(write), *given, world.platform.line(), name]
    command += [f"{key}={value}" for key, value in settings.items()]
    return subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}).returncode


def finish(world: World, url: str, given: list[str], name: str, endpoint: str, new: Release) -> None:
    settings = QUICK | {"endpoint": endpoint, "ready_timeout_s": 60.0}
    assert run(*given, world.platform.line(), name, **settings) == "promote"
    state = world.serving.read(endpoint)
    assert (state.champion, state.lease, weights(state)) == (new, None, {f"v{new.version}": 100})
    assert infer(url, endpoint, tiny_images()[0]).version == f"v{new.version}"
    last = ledger.history(world.store, endpoint)[-1]
    assert (last.release, last.weights) == (new, {f"v{new.version}": 100})


def test_killed_in_a_canary_the_reconciler_goes_back_to_stable_and_another_run_starts_anew(
    served: tuple[World, str], tmp_path: Path
) -> None:
    world, url = served
    one, two = tiny_pair(world.store)
    install(world, "killed", one)
    with asked(url, "killed") as tally:
        given = inputs(world, tmp_path / "in", "killed", two, one)
        assert killed_at(8, world, given, "run-killed", "killed", lease_s=2.0) == -signal.SIGKILL
        assert "v2" in world.serving.read("killed").versions
        wait_for(lambda: "v2" not in world.serving.read("killed").versions, 20, "the lease has run out")
        state = world.serving.read("killed")
        assert (state.champion, state.by, state.lease) == (one, "flywheel serve", None)
        assert "run run-killed did not renew its lease of 2 s" in state.reason
        wait_for(lambda: ledger.history(world.store, "killed")[-1].reason == state.reason)
        finish(world, url, given, "run-other", "killed", two)
    assert tally.get("failed", 0) == 0


@pytest.mark.parametrize("victim", ["v2", pytest.param("v1", marks=pytest.mark.faults)])
def test_a_model_server_killed_in_a_canary_is_started_again_and_the_canary_is_decided_on(
    served: tuple[World, str], tmp_path: Path, victim: str
) -> None:
    world, url = served
    one, two = tiny_pair(world.store)
    endpoint = f"server-{victim}"
    install(world, endpoint, one)
    assert isinstance(world.serving, LocalServing)
    seen = world.serving.folder / endpoint / "seen.json"
    with asked(url, endpoint) as tally, ThreadPoolExecutor(1) as pool:
        given = inputs(world, tmp_path / "in", endpoint, two, one)
        settings = QUICK | {"endpoint": endpoint, "ready_timeout_s": 60.0, "step_requests": 100}
        running = pool.submit(run, *given, world.platform.line(), f"run-{victim}", **settings)
        wait_for(lambda: tally.get("v2", 0) > 5 or running.done())
        os.kill(json.loads(seen.read_bytes())["pids"][victim], signal.SIGKILL)
        assert running.result(120) in ("promote", "rollback", "hold")
        state = world.serving.read(endpoint)
        assert (state.lease, list(weights(state).values())) == (None, [100])
        wait_for(lambda: infer(url, endpoint, tiny_images()[0]).version == state.stable)
    if victim == "v2":
        assert tally.get("failed", 0) <= 8  # what the killed one had in its hands


@pytest.mark.faults
def test_the_gateway_killed_in_a_canary_comes_back_and_nobody_is_left_with_half_of_it(tmp_path: Path) -> None:
    """Everything dies but the rollout: it goes on looking, and decides when requests are counted again."""
    world = connect(Platform.local(tmp_path / "platform"))
    one, two = tiny_pair(world.store)
    assert isinstance(world.serving, LocalServing)
    with ThreadPoolExecutor(1) as pool:
        with serving(world.platform) as url:
            install(world, "detector", one)
            with asked(url, "detector") as tally:
                given = inputs(world, tmp_path / "in", "detector", two, one)
                settings = QUICK | {"endpoint": "detector", "ready_timeout_s": 60.0, "step_requests": 200}
                running = pool.submit(run, *given, world.platform.line(), "run-1", **settings)
                wait_for(lambda: tally.get("v2", 0) > 5 or running.done())
                server = world.serving.server()
                assert server is not None
                os.kill(int(server["pid"]), signal.SIGKILL)
        wait_for(lambda: world.serving.server() is None)  # type: ignore[attr-defined]
        with serving(world.platform) as url, asked(url, "detector") as tally:
            assert running.result(120) in ("promote", "rollback", "hold")
            state = world.serving.read("detector")
            assert (state.lease, list(weights(state).values())) == (None, [100])
            wait_for(lambda: tally.get(state.stable or "", 0) > 5)


def test_a_clock_that_jumps_decides_nothing(attended: World) -> None:
    now = [1e9]

    def clock() -> float:
        now[0] += 7200 if len(now) % 2 else -7200
        now.append(0)
        return now[0]

    assert canary(attended, Traffic(attended), clock=clock).roll().decision == "promote"


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_killed_at_any_write_it_is_run_again_and_no_user_sees_it(served: tuple[World, str], tmp_path: Path) -> None:
    world, url = served
    one, two = tiny_pair(world.store)
    write = 0
    while True:
        write += 1
        endpoint = f"any-{write}"
        install(world, endpoint, one)
        with asked(url, endpoint) as tally:
            given = inputs(world, tmp_path / endpoint, endpoint, two, one)
            code = killed_at(write, world, given, f"run-{write}", endpoint)
            finish(world, url, given, f"run-{write}", endpoint, two)
        assert tally.get("failed", 0) == 0
        world.serving.write(world.serving.read(endpoint).but(stable=None, versions={}))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert write > 15
