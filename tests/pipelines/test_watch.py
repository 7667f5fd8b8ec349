"""The schedule of one machine: what it starts and when, one at a time, and that a kill loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kfp_flywheel.components.runtime.adapters.local.runs import LocalRuns, RunEnded
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.ports import RunRequest
from kfp_flywheel.pipelines.watch import fingerprint, parameters, served
from kfp_flywheel.pipelines.watcher import RETRY_S, NewData, Schedule, Watcher, queue_of

from tests.folders import small, write
from tests.waiting import wait_for


def asked(name: str, at: float = 1.0, **given: str | int | float | bool) -> RunRequest:
    return RunRequest(name=name, pipeline="flywheel", parameters=given, reason="because", at=at)


class Machine:
    """A watcher whose runs end at once, as they are told to, and whose clock stands still until it is set."""

    def __init__(self, folder: Path, tries: int = 3, **triggers: NewData | Schedule) -> None:
        self.runs = LocalRuns(f"local://{folder}/queue")
        self.now, self.codes = 0.0, dict[str, list[int]]()
        self.started, self.told = list[str](), list[str]()
        self.meanwhile: Callable[[], object] = lambda: None
        self.watcher = Watcher(self.runs, self.run, self.told.append, clock=lambda: self.now, tries=tries, **triggers)

    def run(self, request: RunRequest) -> RunEnded:
        self.started.append(request.name)
        self.meanwhile()
        code = (self.codes.get(request.name) or [0]).pop(0)
        return RunEnded(name=request.name, run="r", decision="", reason=f"code {code}", exit_code=code)

    def round(self, now: float) -> list[str]:
        """What was started in a round at this time."""
        self.now, self.started = now, []
        self.watcher.round()
        return self.started


def test_what_was_asked_for_is_done_once_the_oldest_first(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for name, at in (("b", 2.0), ("a", 1.0)):
        machine.runs.start(asked(name, at))
    assert machine.round(0) == ["a", "b"]
    assert machine.round(1) == []
    ended = machine.runs.ended("a")
    assert ended
    assert (ended.reason, ended.exit_code) == ("code 0", 0)
    assert machine.told == ["a: flywheel starts: because", "a: code 0", "b: flywheel starts: because", "b: code 0"]


def test_what_a_run_asks_for_is_done_in_the_same_round(tmp_path: Path) -> None:
    monitor = Schedule(60, lambda: asked("monitor"))
    machine = Machine(tmp_path, schedule=monitor)
    machine.meanwhile = lambda: machine.runs.start(asked("retrain"))
    assert machine.round(0) == ["monitor", "retrain"]


def test_a_schedule_comes_at_once_and_then_every_so_often(tmp_path: Path) -> None:
    machine = Machine(tmp_path, schedule=Schedule(60, lambda: asked("monitor")))
    assert [bool(machine.round(now)) for now in (0, 59, 60, 61, 119, 120)] == [True, False, True, False, False, True]
    assert machine.round(1000) == ["monitor"]  # what was missed is not made up for
    assert machine.round(1001) == []
    assert machine.runs.list(10) == []


def test_new_data_is_used_when_nobody_writes_to_it_any_more(tmp_path: Path) -> None:
    seen = iter(["one", "one", "one", "two", "three", "three", "three", "one", "one"])
    looked = list[float]()

    def look() -> str:
        looked.append(1)
        return next(seen)

    machine = Machine(tmp_path, data=NewData(look, lambda found: asked(f"data-{found}-{len(looked)}"), 10))
    started = [machine.round(10.0 * number) for number in range(9)]
    assert started == [[], ["data-one-2"], [], [], [], ["data-three-6"], [], [], ["data-one-9"]]
    machine.round(81)
    assert len(looked) == 9  # no look before its time


def test_data_that_was_asked_for_survives_a_watcher(tmp_path: Path) -> None:
    machine = Machine(tmp_path, data=NewData(lambda: "one", lambda found: asked(f"data-{found}"), 0))

    def killed() -> None:
        raise KeyboardInterrupt

    machine.round(0)
    machine.meanwhile = killed
    with pytest.raises(KeyboardInterrupt):
        machine.round(1)
    assert Machine(tmp_path).round(0) == ["data-one"]


def test_a_run_whose_backend_was_away_is_begun_again_later_and_others_meanwhile(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.codes = {"a": [3, 0], "b": [2]}
    machine.runs.start(asked("a"))
    assert machine.round(0) == ["a"]
    machine.runs.start(asked("b"))
    assert machine.round(1) == ["b"]
    assert machine.runs.ended("a") is None
    assert machine.round(RETRY_S) == ["a"]
    ended = machine.runs.ended("a")
    assert ended
    assert ended.exit_code == 0
    assert machine.watcher.worst == 3


def test_a_backend_that_stays_away_ends_a_run_after_some_tries(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.codes = {"a": [3, 3, 3, 3]}
    machine.runs.start(asked("a"))
    assert [bool(machine.round(RETRY_S * number)) for number in range(6)] == [True, True, True, False, False, False]
    ended = machine.runs.ended("a")
    assert ended
    assert ended.exit_code == 3


def test_a_trouble_is_told_once_and_stops_nothing_else(tmp_path: Path) -> None:
    def away() -> str:
        raise PlatformError("the store is away.")

    data = NewData(away, lambda found: asked("data"), 0)
    machine = Machine(tmp_path, data=data, schedule=Schedule(60, lambda: asked("monitor")))
    assert machine.round(0) == ["monitor"]
    machine.round(1)
    assert machine.told.count("the store is away.") == 1


def test_an_end_that_cannot_be_entered_does_not_make_it_run_without_end(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.runs.start(asked("a"))
    (machine.runs.folder / "ended").write_text("a file where a folder is wanted")
    assert machine.round(0) == ["a"]
    assert machine.round(1) == []
    assert "could not be written" in machine.told[-1]
    (machine.runs.folder / "ended").unlink()
    assert machine.round(RETRY_S) == ["a"]
    assert machine.runs.ended("a")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "pets", small())


def test_a_fingerprint_changes_with_what_a_run_would_read_and_with_nothing_else(source: Path) -> None:
    seen = [fingerprint(str(source))]
    assert fingerprint(f"file://{source}/data.yaml") == seen[0]
    (source / "notes.md").write_text("not read")
    (source / ".flywheel").mkdir()
    assert fingerprint(str(source)) == seen[0]

    def changed() -> bool:
        seen.append(fingerprint(str(source)))
        return len(set(seen)) == len(seen)

    (source / "labels/train/00.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    assert changed()
    shutil.copy(source / "images/train/00.jpg", source / "images/train/99.jpg")
    assert changed()
    (source / "images/train/99.jpg").unlink()
    (source / "data.yaml").write_text((source / "data.yaml").read_text().replace("dog", "wolf"))
    assert changed()
    (source / "data.yaml").write_text("names: [")
    assert changed()
    shutil.rmtree(source)
    assert changed()


def test_a_fingerprint_of_an_object_store_is_its_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="pets")
        client.put_object(Bucket="pets", Key="cats/data.yaml", Body=b"names: [cat]")
        seen = fingerprint("s3://pets/cats")
        assert fingerprint("s3://pets/cats/data.yaml") == seen
        client.put_object(Bucket="pets", Key="other", Body=b"")
        assert fingerprint("s3://pets/cats") == seen
        client.put_object(Bucket="pets", Key="cats/images/1.jpg", Body=b"")
        assert fingerprint("s3://pets/cats") != seen
        with pytest.raises(PlatformError):
            fingerprint("s3://no-such-bucket/cats")


def test_one_file_holds_the_parameters_of_both_pipelines(tmp_path: Path) -> None:
    file = tmp_path / "watch.yaml"
    file.write_text("epochs: 3\nwindow: 50\nendpoint: pets\n")
    flywheel, monitor = parameters("pets/data.yaml", file, "")
    assert (flywheel["epochs"], flywheel["endpoint"], flywheel["source"]) == (
        3,
        "pets",
        str(Path("pets/data.yaml").absolute()),
    )
    assert (monitor["window"], monitor["endpoint"]) == (50, "pets")
    flywheel, monitor = parameters("", file, "cats")
    assert (flywheel["endpoint"], monitor["endpoint"], flywheel["source"]) == ("cats", "cats", "")


@pytest.mark.parametrize("line", ["epoch: 3", "window: 1", "epochs: 0"])
def test_a_wrong_parameter_is_named_before_anything_starts(line: str, tmp_path: Path) -> None:
    (tmp_path / "watch.yaml").write_text(line)
    with pytest.raises(UserError, match=line.partition(":")[0]):
        parameters("", tmp_path / "watch.yaml", "")


def test_a_platform_without_runs_cannot_be_watched(platform: Platform) -> None:
    with pytest.raises(UserError, match="runs is missing"):
        queue_of(platform.but(runs=""))


def test_what_serves_is_begun_again_at_the_same_address_when_it_is_killed(platform: Platform) -> None:
    local, told = LocalServing(platform.serving), list[str]()
    with served(platform, 0, told.append):
        first = local.server()
        assert first
        os.kill(first["pid"], signal.SIGKILL)
        wait_for(lambda: (local.server() or first)["pid"] != first["pid"], 60)
        again = local.server()
        assert again
        assert again["url"] == first["url"]
    assert local.server() is None
    assert len(told) == 2


def command(root: Path, *more: str) -> list[str]:
    watch = [sys.executable, "-m", "kfp_flywheel.pipelines.cli", "watch", "--root", str(root), "--port", "0"]
    return [*watch, "--every", "0", *more]


def left_running(root: Path) -> bool:
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return any(str(root) in line for line in lines)


def test_killed_in_the_middle_of_a_run_it_does_it_when_it_is_started_again(tmp_path: Path) -> None:
    """With kill -9; a second one is refused meanwhile. Nothing is left running, and the reason of a failure is kept."""
    root = tmp_path / "root"
    runs = queue_of(Platform.local(root))
    runs.start(asked("by-hand", source=f"{tmp_path}/nowhere"))
    with subprocess.Popen(command(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        said = iter(process.stdout)
        assert any("by-hand: flywheel starts: because" in line for line in said)
        refused = subprocess.run(command(root, "--once"), capture_output=True, text=True, timeout=60)
        assert refused.returncode == 3
        assert f"kill {process.pid}" in refused.stderr
        wait_for(lambda: any("flywheel | " in log.read_text() for log in (root / "runs").glob("*.log")))
        process.send_signal(signal.SIGKILL)
    assert runs.ended("by-hand") is None
    wait_for(lambda: not left_running(root), 20)
    done = subprocess.run(command(root, "--once", "--json"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    ended = runs.ended("by-hand")
    assert ended
    assert ended.exit_code == 2
    assert "nowhere does not exist" in ended.reason
    assert Path(ended.reason.rpartition("\nlog: ")[2]).is_file()
    assert ended.run
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert any("by-hand: failed" in event["what"] for event in events)
    assert all(event["at"] > 0 for event in events)
    wait_for(lambda: not left_running(root), 20)


def test_new_data_runs_the_flywheel_and_a_wrong_pipeline_is_said(tmp_path: Path, source: Path) -> None:
    root = tmp_path / "root"
    runs = queue_of(Platform.local(root))
    runs.start(asked("unknown").but(pipeline="fly"))
    (source / "data.yaml").write_text("names: [")
    done = subprocess.run(command(root, "--once", "--data", str(source)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    unknown, (new,) = (
        runs.ended("unknown"),
        [state.request for state in runs.list(10) if state.request.name.startswith("data-")],
    )
    assert unknown
    assert "fly is not a pipeline: flywheel" in unknown.reason
    ended = runs.ended(new.name)
    assert ended
    assert f"{source}/data.yaml is not YAML" in ended.reason
    assert new.parameters["source"] == str(source)


def test_the_monitor_is_run_on_schedule_and_tells_people(tmp_path: Path) -> None:
    root = tmp_path / "root"
    done = subprocess.run([*command(root, "--once"), "--every", "60"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "monitor-detector: undecided: endpoint detector has no champion yet." in done.stdout
    (log,) = (root / "runs").glob("*-monitor.log")
    assert "flywheel | notify: monitor of detector: monitor says undecided." in log.read_text()
