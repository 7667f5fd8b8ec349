"""A package gets one version in the registry, however often, by however many, and wherever the step is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kfp_flywheel.components.register.stage import register, run
from kfp_flywheel.components.runtime.adapters.mlflow import open_mlflow
from kfp_flywheel.components.runtime.artifacts import (
    Checkpoint,
    EvalReport,
    Lineage,
    ModelPackage,
    Release,
    Scores,
)
from kfp_flywheel.components.runtime.blobs import put_blob
from kfp_flywheel.components.runtime.errors import PlatformError
from kfp_flywheel.components.runtime.step import run_records

LINEAGE = Lineage(code="1+abc", image="local", run="r1", parents=("d1",))
FORK = multiprocessing.get_context("fork")  # the children need MLflow, and importing it takes seconds


def package(store, id="p1"):
    blob = put_blob(store, b"model")
    return ModelPackage(
        id=id,
        lineage=LINEAGE,
        family="detection",
        names=("a",),
        dataset="d1",
        files={"model.onnx": blob},
        checkpoint=Checkpoint(blob=blob, digest="c1"),
        curve=(),
        tracking_run="",
    )


def report(store, package="p1", decision="pass", id="e1"):
    return EvalReport(
        id=id,
        lineage=LINEAGE,
        decision=decision,
        reason="All 6 checks passed.",
        package=package,
        champion=None,
        dataset="d1",
        images=100,
        challenger_scores=Scores(map50=0.9, map=0.7, class_map50={"a": 0.9}, latency_ms=1, size_mb=1),
        champion_scores=None,
        checks=(),
        page=put_blob(store, b"page"),
    )


@pytest.fixture(scope="module")
def first_use(tmp_path_factory):
    """What a step left, and printed, that was the first to use MLflow; the schema of its database takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "here").mkdir()
    program = """
import sys
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.wiring import connect
elsewhere = {"store": "file:///s", "jobs": "local://", "serving": "local:///s"}
connect(Platform.of(**elsewhere, tracking=sys.argv[1])).mlflow.search_registered_models()
from mlflow.telemetry.client import get_telemetry_client
print(get_telemetry_client())
"""
    # MLflow calls nobody from a test or from CI anyway, so these are not told to it.
    telling = ("PYTEST", "CI", "GITHUB", "DO_NOT_TRACK", "MLFLOW")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(telling)}
    done = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{folder}/mlflow.db"],
        cwd=folder / "here",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder, done


@pytest.fixture
def ready(platform, first_use):
    """The platform, with the schema of its MLflow made."""
    path = Path(platform.tracking.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((first_use[0] / "mlflow.db").read_bytes())
    return platform


def step(platform, store, tmp_path, judged=None, why=None, run_id="run"):
    judged, why = judged or package(store), why or report(store)
    judged.write(tmp_path / "package")
    why.write(tmp_path / "report")
    run(
        *(str(tmp_path / name) for name in ("package", "report", "release")),
        model="detector",
        platform=platform.line(),
        run_id=run_id,
    )
    return Release.read(tmp_path / "release")


def versions(platform):
    return open_mlflow(platform.tracking).search_model_versions("name = 'detector'")


def test_a_version_carries_its_lineage_and_the_release_points_at_the_package(ready, world, tmp_path):
    release = step(ready, world.store, tmp_path)
    (version,) = versions(ready)
    assert (release.version, release.model, release.package, release.dataset, release.report) == (
        str(version.version),
        "detector",
        "p1",
        "d1",
        "e1",
    )
    assert version.source == release.package_uri
    assert ModelPackage.from_json(world.store.get(release.package_uri), "") == package(world.store)
    assert version.tags["flywheel.package"] == "p1"
    assert version.tags["flywheel.dataset"] == "d1"
    assert version.tags["flywheel.report"] == "e1"
    assert version.tags["flywheel.decision"] == "pass"
    assert version.tags["flywheel.code"] == "1+abc"
    assert version.tags["flywheel.run"] == "r1"
    assert version.tags["flywheel.parents"] == "d1"
    assert version.tags["flywheel.model_sha256"] == put_blob(world.store, b"model").sha256


def test_the_metrics_are_logged_to_the_training_run_and_its_loss_is_no_error(ready, world, tmp_path):
    client = open_mlflow(ready.tracking)
    tracking_run = client.create_run("0").info.run_id
    judged = package(world.store).but(tracking_run=tracking_run)
    step(ready, world.store, tmp_path, judged)
    data = client.get_run(tracking_run).data
    assert data.metrics == {
        "holdout/map50": 0.9,
        "holdout/map50_95": 0.7,
        "holdout/latency_ms": 1,
        "holdout/size_mb": 1,
    }
    assert versions(ready)[0].run_id == tracking_run
    client.delete_run(tracking_run)
    assert step(ready, world.store, tmp_path, judged, run_id="again").version == "1"
    assert "could not be logged" in run_records(world.store, "again")[0].sentence


def test_registering_twice_is_registering_once(ready, world, tmp_path):
    first = step(ready, world.store, tmp_path)
    again = step(ready, world.store, tmp_path, run_id="again")
    assert again.but(lineage=first.lineage) == first
    assert len(versions(ready)) == 1
    assert [run_records(world.store, r)[0].outcome for r in ("run", "again")] == ["done", "reused"]


def test_another_package_is_another_version(ready, world, tmp_path):
    step(ready, world.store, tmp_path)
    release = step(ready, world.store, tmp_path, package(world.store, "p2"), report(world.store, "p2"), "other")
    assert release.version == "2"


def test_a_package_that_was_judged_again_keeps_its_version_and_shows_the_new_report(ready, world, tmp_path):
    step(ready, world.store, tmp_path)
    release = step(ready, world.store, tmp_path, why=report(world.store, id="e2"), run_id="again")
    (version,) = versions(ready)
    assert (release.version, release.report, version.tags["flywheel.report"]) == ("1", "e2", "e2")


@pytest.mark.parametrize(
    ("why", "said"),
    [({"decision": "fail"}, "its gate says fail"), ({"decision": "undecided"}, "undecided"), ({"package": "p2"}, "p2")],
)
def test_only_what_passed_its_own_gate_is_registered(ready, world, tmp_path, capsys, why, said):
    with pytest.raises(SystemExit) as stopped:
        step(ready, world.store, tmp_path, why=report(world.store, **why))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().out
    assert versions(ready) == []


def test_a_registry_that_is_away_is_named(world, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = open_mlflow("http://127.0.0.1:9")
    with pytest.raises(PlatformError, match="p1 could not be registered as detector"):
        register(client, "detector", package(world.store), report(world.store), "file:///p1.json")


class Dying:
    """MLflow's client in a process that is killed right after (or before) one of its calls."""

    def __init__(self, client, call, after):
        self._client, self._call, self._after = client, call, after

    def __getattr__(self, name):
        real = getattr(self._client, name)

        def calling(*args, **kwargs):
            result = real(*args, **kwargs) if self._after else None
            os.kill(os.getpid(), signal.SIGKILL)
            return result

        return calling if name == self._call else real


def register_and_die(tracking, store, call, after):
    client = Dying(open_mlflow(tracking), call, after)
    register(client, "detector", package(store), report(store), "file:///p1.json")


def killed(platform, store, call, after=True):
    child = FORK.Process(target=register_and_die, args=(platform.tracking, store, call, after))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "call",
    [
        "create_model_version",
        pytest.param("create_registered_model", marks=pytest.mark.faults),
        pytest.param("search_model_versions", marks=pytest.mark.faults),
    ],
)
def test_a_step_that_is_killed_between_two_calls_is_run_again_to_the_same_end(ready, world, tmp_path, call):
    killed(ready, world.store, call)
    assert step(ready, world.store, tmp_path).version == "1"
    assert len(versions(ready)) == 1


def test_one_that_is_killed_before_it_took_its_double_back_leaves_it_to_the_next(ready, world, tmp_path):
    client, judged, why = open_mlflow(ready.tracking), package(world.store), report(world.store)
    register(client, "detector", judged, why, "file:///p1.json")
    client.create_model_version("detector", "file:///p1.json", tags={"flywheel.package": "p1"})
    killed(ready, world.store, "delete_model_version", after=False)
    assert len(versions(ready)) == 2
    assert step(ready, world.store, tmp_path).version == "1"
    assert [version.version for version in versions(ready)] == [1]


class Patient:
    """MLflow's client, which meets the others before it makes a version: the race is certain, not possible."""

    def __init__(self, client, barrier):
        self._client, self._barrier = client, barrier

    def __getattr__(self, name):
        real = getattr(self._client, name)

        def calling(*args, **kwargs):
            self._barrier.wait(60)
            return real(*args, **kwargs)

        return calling if name == "create_model_version" else real


def register_together(tracking, store, barrier, answers):
    client = Patient(open_mlflow(tracking), barrier)
    answers.put(register(client, "detector", package(store), report(store), "file:///p1.json")[0])


def test_processes_that_register_at_once_agree_on_one_version(ready, world):
    barrier, answers = FORK.Barrier(3), FORK.Queue()
    children = [
        FORK.Process(target=register_together, args=(ready.tracking, world.store, barrier, answers)) for _ in range(3)
    ]
    for child in children:
        child.start()
    found = {answers.get(timeout=60) for _ in children}
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    (left,) = versions(ready)
    assert found == {str(left.version)}


def test_mlflow_is_quiet_calls_nobody_and_leaves_nothing_behind(first_use):
    folder, done = first_use
    assert (done.stdout, done.stderr) == ("None\n", "")  # no telemetry client
    assert list((folder / "here").iterdir()) == []
