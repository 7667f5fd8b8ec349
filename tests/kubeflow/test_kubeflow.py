"""`flywheel submit`, `runs` and `schedule` against a real Kubeflow Pipelines.

FLYWHEEL_KFP_HOST says where it is from here, FLYWHEEL_KFP_PLATFORM is the platform file that its pods can use. Without
them, these tests are skipped. They take about ten minutes, most of it the time that Kubeflow's pods take to start.
"""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from kfp_flywheel.pipelines.platforms import read_platform

from tests.waiting import wait_for

pytestmark = [pytest.mark.kfp, pytest.mark.timeout(900)]
OURS = f"test-{uuid.uuid4().hex[:8]}"
FLYWHEEL = [sys.executable, "-m", "kfp_flywheel.pipelines.cli"]


@pytest.fixture(scope="module")
def file() -> str:
    named = os.environ.get("FLYWHEEL_KFP_PLATFORM")
    if not named:
        pytest.skip("FLYWHEEL_KFP_PLATFORM names no platform file")
    return str(Path(named).absolute())


def flywheel(file: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FLYWHEEL, *words, "--platform", file], capture_output=True, text=True, timeout=600)


def said(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_run_is_followed_to_its_end_and_the_same_name_starts_nothing_new(file: str) -> None:
    name, endpoint = f"{OURS}-quiet", ("-p", f"endpoint={OURS}")
    first = flywheel(file, "submit", "monitor", *endpoint, "--name", name)
    assert first.returncode == 0, first.stderr
    assert "✓ monitor" in first.stderr
    assert "has no champion yet" in first.stderr
    again = said(flywheel(file, "submit", "monitor", *endpoint, "--name", name, "--json"))
    assert again["state"] == "succeeded"
    assert [step["step"] for step in again["steps"]] == ["monitor", "notify"]
    assert [each["request"]["name"] for each in said(flywheel(file, "runs", "list", "--json"))].count(name) == 1
    assert "monitor: flywheel | monitor: started" in flywheel(file, "runs", "logs", name).stdout
    assert flywheel(file, "runs", "show", again["run"]).stdout.startswith(name)


def test_a_failed_run_tells_its_own_reason_and_its_exit_code(file: str, tmp_path: Path) -> None:
    store = read_platform(tmp_path, Path(file)).store
    done = flywheel(file, "submit", "--data", f"{store}/{OURS}-nothing", "--json")
    told = said(done, 2)
    assert told["state"] == "failed"
    assert f"{OURS}-nothing" in told["reason"]
    assert told["reason"].startswith("ingest: ")


def test_a_run_goes_on_when_following_ends_and_is_cancelled_by_hand(file: str) -> None:
    name = f"{OURS}-cancelled"
    command = [*FLYWHEEL, "submit", "monitor", "--name", name, "-p", f"endpoint={OURS}", "--platform", file]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as following:
        assert following.stderr
        wait_for(lambda: flywheel(file, "runs", "show", name).returncode != 2)
        following.send_signal(signal.SIGINT)
        assert "the run goes on" in following.stderr.read()
    assert following.returncode == 130
    assert said(flywheel(file, "runs", "show", name, "--json"))["state"] in ("waiting", "running")
    assert flywheel(file, "runs", "cancel", name).returncode == 0
    wait_for(lambda: json.loads(flywheel(file, "runs", "show", name, "--json").stdout)["state"] == "failed", 60)


def test_a_step_that_cannot_begin_says_what_it_waits_for(file: str, tmp_path: Path) -> None:
    platform, name = read_platform(tmp_path, Path(file)), f"{OURS}-stuck"
    without = platform.pods.but(secrets=platform.pods.secrets | {f"{OURS}-nowhere": ["KEY"]})
    (tmp_path / "platform.yaml").write_text(platform.but(pods=without).line())
    stuck = str(tmp_path / "platform.yaml")
    flywheel(stuck, "submit", "monitor", "-p", f"endpoint={OURS}", "--name", name, "--detach")
    waits = f'waits for CreateContainerConfigError: secret "{OURS}-nowhere" not found'
    wait_for(lambda: waits in flywheel(stuck, "runs", "show", name).stdout, 120)
    flywheel(stuck, "runs", "cancel", name)


@pytest.fixture
def schedule(file: str) -> Iterator[str]:
    name = f"{OURS}-schedule"
    yield name
    flywheel(file, "schedule", "delete", name)


def test_a_schedule_fires_again_and_again_without_overlap_and_is_deleted_after_its_run(
    file: str, schedule: str
) -> None:
    create = ("schedule", "create", schedule, "--pipeline", "monitor", "-p", f"endpoint={OURS}", "--json")

    def runs() -> list[dict[str, Any]]:
        found = said(flywheel(file, "runs", "list", "--limit", "100", "--json"))
        return [each for each in found if each["request"]["name"].startswith(schedule)]

    made = said(flywheel(file, *create, "--cron", "* * * * *"))
    assert (made["outcome"], made["cron"], made["says"]) == ("created", "* * * * *", "every minute (UTC)")
    assert said(flywheel(file, *create, "--cron", "* * * * *"))["outcome"] == "unchanged"
    wait_for(lambda: len(runs()) >= 2, 300)
    starts = sorted((each["request"]["at"], each["request"]["at"] + each["seconds"]) for each in runs())
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(starts))
    assert flywheel(file, "schedule", "pause", schedule).returncode == 0
    assert flywheel(file, "schedule", "resume", schedule).returncode == 0
    # Another time is another schedule: the former one's run ends first.
    replaced = flywheel(file, *create, "--cron", "0 3 * * *")
    assert said(replaced)["outcome"] == "replaced"
    assert all(each["state"] == "succeeded" for each in runs())
    (found,) = [each for each in said(flywheel(file, "schedule", "list", "--json")) if each["name"] == schedule]
    assert (found["cron"], found["paused"]) == ("0 3 * * *", False)
    assert flywheel(file, "schedule", "delete", schedule).returncode == 0
    assert schedule not in flywheel(file, "schedule", "list").stdout
    assert flywheel(file, "schedule", "delete", schedule).returncode == 2


def test_detached_it_waits_for_nothing(file: str) -> None:
    told = said(flywheel(file, "submit", "monitor", "-p", f"endpoint={OURS}", "--detach", "--json"))
    assert told["state"] in ("waiting", "running")
    flywheel(file, "runs", "cancel", told["name"])
