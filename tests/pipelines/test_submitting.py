"""Runs that others work off: asked for once, each line shown once, and the reason told that KFP has not got."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.components.runtime.lines import MARK
from kfp_flywheel.components.runtime.ports import RunRequest, RunState, Task
from kfp_flywheel.components.runtime.step import StepRecord
from kfp_flywheel.components.runtime.wiring import World, connect
from kfp_flywheel.pipelines import submitting

from tests.servers import free_port
from tests.waiting import wait_for

REPO = Path(__file__).parents[2]


def run(state: str = "failed", pipeline: str = "flywheel") -> RunState:
    request = RunRequest(name="r", pipeline=pipeline, parameters={}, reason="asked for by hand", at=1.0)
    return RunState(request=request, state=state, run="run-1")  # type: ignore[arg-type]


def ended(world: World, step: str, outcome: str, sentence: str, code: int = 0) -> None:
    record = StepRecord(step=step, started=time.time(), seconds=1, outcome=outcome, sentence=sentence, exit_code=code)  # type: ignore[arg-type]
    world.store.put(f"runs/run-1/{step}-{time.time_ns()}.json", record.line().encode())


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=9), max_size=9), st.data())
def test_each_line_is_shown_once_however_it_comes_in(lines: list[str], data: st.DataObject) -> None:
    whole = "".join(f"{MARK}train: {line}\nnoise\n" for line in lines)
    ends = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    seen = list[str]()
    follower = submitting.Follower(lambda line, _: seen.append(line))
    for end in ends:
        follower.look([Task(name="train", state="running", printed=whole[:end])])
    follower.look([Task(name="train", state="succeeded", printed=whole)])
    follower.look([Task(name="train", state="succeeded", printed=whole)])
    assert seen == [each for line in lines for each in f"train: {line}".splitlines()[:1]]


def test_what_keeps_a_step_from_beginning_is_said_once_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    seen = list[str]()
    follower = submitting.Follower(lambda line, _: seen.append(line))
    stuck = Task(name="ingest", state="running", waits_for='CreateContainerConfigError: secret "store" not found')
    for _ in range(2):
        follower.look([stuck])
    follower.look([stuck.but(waits_for="a node: 0/1 nodes are available")])
    told = [
        'ingest: waits for CreateContainerConfigError: secret "store" not found',
        "ingest: waits for a node: 0/1 nodes are available",
    ]
    assert seen == told
    submitting.show(submitting.Told(run("running"), [], [stuck]))
    assert told[0].partition(": ")[2] in capsys.readouterr().out


def test_a_step_that_the_backend_lost_sight_of_is_told_by_its_record_and_once(world: World) -> None:
    for step in ("ingest", "rollout"):
        ended(world, step, "done", f"{step} is done.")
    seen = list[str]()
    follower = submitting.Follower(lambda line, _: seen.append(line))
    records = submitting.run_records(world.store, "run-1")
    follower.look_at_records(records[:1])
    printed = f'{MARK}ingest: done: "ingest is done."\n{MARK}rollout: v1: starting\n'
    follower.look([Task(name="ingest", state="succeeded", printed=printed)])
    follower.look_at_records(records)
    assert seen == ['ingest: done: "ingest is done."', "rollout: v1: starting", 'rollout: done: "rollout is done."']


def test_a_failed_run_tells_what_its_step_said_and_has_its_exit_code(world: World, platform: Platform) -> None:
    ended(world, "resolve", "done", "the champion is none.")
    ended(world, "ingest", "failed", "s3://x holds no images. Next: correct source", 2)
    told = submitting.tell(run(), [], platform)
    assert told.reason == "ingest: s3://x holds no images. Next: correct source"
    assert told.exit_code == 2
    assert [step.step for step in told.steps] == ["resolve", "ingest"]


def test_of_a_step_that_died_the_last_lines_are_told(platform: Platform) -> None:
    printed = "".join(f"line {number}\n" for number in range(9))
    told = submitting.tell(run(), [Task(name="train", state="failed", printed=printed)], platform)
    assert "train ended without a word" in told.reason
    assert told.reason.endswith("line 4\nline 5\nline 6\nline 7\nline 8")
    assert told.exit_code == 1


def test_a_run_that_never_began_a_step_is_told_where_to_look(platform: Platform) -> None:
    assert "service account" in submitting.tell(run(), [], platform).reason


def test_a_monitor_that_succeeded_tells_what_it_saw_and_not_what_notify_did(world: World, platform: Platform) -> None:
    ended(world, "monitor", "done", "quiet: nothing has changed.")
    ended(world, "notify", "done", "Nothing that a person has to know.")
    told = submitting.tell(run("succeeded", "monitor"), [], platform)
    assert (told.reason, told.exit_code) == ("quiet: nothing has changed.", 0)


def test_records_that_cannot_be_read_are_said_and_hide_nothing_else(world: World, platform: Platform) -> None:
    ended(world, "ingest", "failed", "no images", 2)
    (path,) = (Path(world.store.root.removeprefix("file://")) / "runs/run-1").iterdir()
    path.chmod(0o644)
    path.write_text("{")
    told = submitting.tell(run(), [], platform)
    assert "records cannot be read" in told.reason
    assert told.exit_code == 1


def test_a_source_on_this_machine_is_refused_before_anything_is_asked(platform: Platform) -> None:
    there = platform.but(runs=f"kfp+http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="which pods cannot read") as refused:
        submitting.submit("flywheel", {"source": "/home/pets"}, "", there)
    assert "s3://" in refused.value.next


def test_the_same_name_is_the_same_run(platform: Platform) -> None:
    first = submitting.submit("flywheel", {"source": "/pets"}, "mine", platform)
    again = submitting.submit("flywheel", {"source": "/others"}, "mine", platform)
    assert again.request == first.request
    assert len(submitting.listed(10, platform)) == 1
    assert submitting.cancelled("mine", platform).state == "cancelled"


def test_the_webhook_of_the_readme_asks_for_one_run_however_often_it_is_notified(
    platform: Platform, tmp_path: Path
) -> None:
    text = (REPO / "pipelines/README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    port = free_port()
    (tmp_path / "webhook.py").write_text(program.replace("8080", str(port)))
    (tmp_path / "cluster.yaml").write_text(platform.line())
    (tmp_path / "small.yaml").write_text("epochs: 3\n")
    found = {"key": "new+pets/data.yaml", "eTag": "0a1b"}
    event = json.dumps({"Records": [{"s3": {"bucket": {"name": "bucket"}, "object": found}}]}).encode()

    def notify() -> bool:
        try:
            with urlopen(Request(f"http://127.0.0.1:{port}/", data=event), timeout=30) as answer:
                return bool(answer.status == 204)
        except OSError:
            return False

    with subprocess.Popen([sys.executable, "webhook.py"], cwd=tmp_path) as webhook:
        try:
            wait_for(notify, 60)
            assert notify()
        finally:
            webhook.kill()
    (state,) = connect(platform).runs.list(10)
    assert state.request.name == "data-0a1b"
    assert state.request.parameters["source"] == "s3://bucket/new pets/data.yaml"
    assert state.request.parameters["epochs"] == 3
