"""A first release becomes champion, and it is so only when the endpoint truly answers with it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kfp_flywheel.components.rollout.canary import Means
from kfp_flywheel.components.rollout.diary import Ended
from kfp_flywheel.components.rollout.evidence import Replayed
from kfp_flywheel.components.rollout.stage import Rolling, run
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.artifacts import Lineage, Release, Resolution, RolloutReport
from kfp_flywheel.components.runtime.config import Platform, Rollout
from kfp_flywheel.components.runtime.decisions import concluded
from kfp_flywheel.components.runtime.errors import PlatformError
from kfp_flywheel.components.runtime.ports import Observed
from kfp_flywheel.components.runtime.step import run_records
from kfp_flywheel.components.runtime.wiring import World, connect
from kfp_flywheel.components.serving.client import infer
from kfp_flywheel.components.serving.serve import serving

from tests.releases import release
from tests.tiny import tiny_images, tiny_release

LINEAGE = Lineage(code="c", image="i", run="r")
URL = "http://127.0.0.1:1"


def roll(
    world: World,
    new: Release,
    champion: Release | None = None,
    ask: Callable[[str], str] = lambda url: "",
    project: Callable[[Release], None] = lambda served: None,
    timeout_s: float = 5.0,
    telemetry: object = "the world's",
) -> Ended:
    settings = Rollout.of(endpoint="detector", ready_timeout_s=timeout_s)
    means = Means(
        store=world.store,
        serving=world.serving,
        telemetry=(lambda: world.telemetry) if telemetry else None,
        ask=ask,
        replay=lambda canary, stable, tick: Replayed(),
        answered_by=lambda: "",
        tell=print,
    )
    return Rolling(means, new, champion, settings, "run-1", project).roll()


@pytest.fixture
def attended(world: World) -> Iterator[World]:
    """Somebody holds the place of `flywheel serve`, and says that v1 and v2 are ready."""
    assert isinstance(world.serving, LocalServing)
    with world.serving.hold() as publish:
        publish(URL)
        world.serving.folder.joinpath("detector").mkdir()
        ready = Observed(ready=True, url=URL)
        world.serving.report("detector", {"v1": ready, "v2": ready}, {})
        yield world


def test_a_first_release_becomes_champion(attended: World) -> None:
    aliased: list[Release] = []
    ended = roll(attended, release("1"), project=aliased.append)
    assert (ended.decision, ended.verdict) == ("promote", "take")
    state = attended.serving.read("detector")
    assert (state.champion, state.stable, state.versions["v1"].weight, state.by) == (release("1"), "v1", 100, "run-1")
    (entry,) = ledger.history(attended.store, "detector")
    assert (entry.generation, entry.release, entry.by, entry.at) == (1, release("1"), "run-1", state.since)
    assert aliased == [release("1")]
    assert f"{URL} answers with v1" in ended.reason


def test_without_telemetry_no_canary_is_tried(attended: World) -> None:
    roll(attended, release("1"))
    before = attended.serving.read("detector")
    ended = roll(attended, release("2"), champion=release("1"), telemetry=None)
    assert (ended.decision, ended.verdict) == ("hold", "changed")
    assert "no telemetry" in ended.reason
    assert attended.serving.read("detector") == before


@pytest.mark.parametrize(("judged_against", "was"), [(None, "none"), (release("0"), "detector version 0")])
def test_a_champion_that_changed_meanwhile_is_respected(
    attended: World, judged_against: Release | None, was: str
) -> None:
    roll(attended, release("1"))
    ended = roll(attended, release("2"), champion=judged_against)
    assert (ended.decision, ended.verdict) == ("hold", "changed")
    assert ended.reason == f"the champion was {was} when this run began and is detector version 1 now."


def test_the_champion_itself_is_adopted_and_entered_once(attended: World) -> None:
    roll(attended, release("1"))
    before = attended.serving.read("detector")
    for champion in (None, release("1")):
        ended = roll(attended, release("1"), champion)
        assert (ended.decision, ended.verdict) == ("promote", "adopt")
    assert attended.serving.read("detector") == before
    assert len(ledger.history(attended.store, "detector")) == 1


def test_of_two_rollouts_at_once_one_wins_and_the_other_says_why(attended: World) -> None:
    start = threading.Barrier(2)

    def go(version: str) -> Ended:
        start.wait()
        return roll(attended, release(version))

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(go, ["1", "2"]))
    assert sorted(ended.decision for ended in outcomes) == ["hold", "promote"]
    champion = attended.serving.read("detector").champion
    loser = next(ended.reason for ended in outcomes if ended.decision == "hold")
    assert champion is not None
    assert f"is detector version {champion.version} now" in loser
    assert attended.serving.read("detector").generation == 1


def test_an_endpoint_that_nobody_serves_keeps_what_is_wanted(world: World) -> None:
    with pytest.raises(PlatformError, match=r"nothing serves endpoint detector.*flywheel serve"):
        roll(world, release("1"), timeout_s=0.1)
    assert world.serving.read("detector").champion == release("1")  # flywheel serve will find it
    assert ledger.history(world.store, "detector") == []  # it has not served


def test_a_first_release_that_never_answers_is_taken_back(attended: World) -> None:
    assert isinstance(attended.serving, LocalServing)
    attended.serving.report("detector", {"v1": Observed(ready=False, reason="its model is broken")}, {})
    with pytest.raises(PlatformError, match=r"did not answer with v1 within 0\.1 s: its model is broken"):
        roll(attended, release("1"), timeout_s=0.1)
    state = attended.serving.read("detector")
    assert (state.champion, state.versions) == (None, {})
    assert "its model is broken" in state.reason
    assert [entry.release for entry in ledger.history(attended.store, "detector")] == [None]


def test_a_champion_that_has_served_is_not_taken_back_for_a_bad_moment(attended: World) -> None:
    roll(attended, release("1"))
    before = attended.serving.read("detector")
    with pytest.raises(PlatformError, match="another colour"):
        roll(attended, release("1"), ask=lambda url: "it sees another colour", timeout_s=0.1)
    assert attended.serving.read("detector") == before


def test_mlflow_away_undoes_nothing_and_is_said(attended: World) -> None:
    def away(served: Release) -> None:
        raise ConnectionError("no route to the registry")

    ended = roll(attended, release("1"), project=away)
    assert ended.decision == "promote"
    assert "alias champion was not set: no route to the registry" in ended.reason
    assert attended.serving.read("detector").champion == release("1")


PROGRAM = """
import os, signal, sys
from kfp_flywheel.components.rollout import stage
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
left = int(sys.argv[1])
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
stage.set_alias = dying(stage.set_alias)
stage.run(*sys.argv[2:7], sys.argv[8], "run-killed", endpoint=sys.argv[7], ready_timeout_s=60.0)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    platform = Platform.local(tmp_path_factory.mktemp("platform"))
    world = connect(platform)
    world.mlflow.create_registered_model("detector")
    world.mlflow.create_model_version("detector", world.store.root)
    with serving(platform) as url:
        yield world, url


def inputs(world: World, folder: Path, endpoint: str) -> tuple[Release, list[str]]:
    folder.mkdir(exist_ok=True)
    new = tiny_release(world.store)
    new.write(folder / "release")
    Resolution(id=f"res-{endpoint}", lineage=LINEAGE, endpoint=endpoint, champion=None, config="c").write(
        folder / "champion"
    )
    return new, [
        str(folder / "release"),
        str(folder / "champion"),
        str(folder / "report"),
        str(folder / "page"),
        f"config-{endpoint}",
    ]


def killed_at(write: int, world: World, given: list[str], endpoint: str) -> int:
    command = [sys.executable, "-c", PROGRAM, str(write), *given, endpoint, world.platform.line()]
    return subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}).returncode


def finish(world: World, url: str, new: Release, given: list[str], endpoint: str) -> None:
    """Run the step again, and look at everything that it leaves."""
    again = run(*given, world.platform.line(), "run-again", endpoint=endpoint, ready_timeout_s=60.0)
    assert again == "promote"
    assert infer(url, endpoint, tiny_images()[0]).version == "v1"
    state = world.serving.read(endpoint)
    assert (state.generation, state.champion) == (1, new)
    assert [entry.release for entry in ledger.history(world.store, endpoint)] == [new]
    report = RolloutReport.read(given[2])
    assert (report.decision, report.url, report.release) == ("promote", url, new.id)
    assert "alias champion was not set" not in report.reason
    assert str(world.mlflow.get_model_version_by_alias("detector", "champion").version) == "1"
    outcome = concluded(world.store, new.dataset, given[4])
    assert outcome is not None
    assert outcome.decision == "promote"


def test_a_step_killed_after_its_first_write_is_run_again(served: tuple[World, str], tmp_path: Path) -> None:
    world, url = served
    new, given = inputs(world, tmp_path, "one")
    assert killed_at(1, world, given, "one") == -signal.SIGKILL
    assert world.serving.read("one").champion == new
    assert not Path(given[2]).exists()
    finish(world, url, new, given, "one")
    assert f"{url} answers with v1 as its trainer saw" in run_records(world.store, "run-again")[-1].sentence


@pytest.mark.faults
def test_a_step_killed_at_any_write_is_run_again(served: tuple[World, str], tmp_path: Path) -> None:
    world, url = served
    write = 0
    while True:
        write += 1
        endpoint = f"kill-{write}"
        new, given = inputs(world, tmp_path / endpoint, endpoint)
        code = killed_at(write, world, given, endpoint)
        finish(world, url, new, given, endpoint)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert write > 5  # wanted state, ledger, alias, conclusion, report, record, and then none
