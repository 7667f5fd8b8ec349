"""The contract of the Runs port, over every adapter. That of Kubeflow Pipelines needs FLYWHEEL_KFP_HOST."""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.local.runs import LocalRuns, RunEnded
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import Conflict, Corrupt, PlatformError, UserError
from kfp_flywheel.components.runtime.ports import RunRequest, Runs, RunState
from kfp_flywheel.components.runtime.wiring import connect

from tests.waiting import wait_for

OURS = uuid.uuid4().hex[:8]
"""Names are for ever: of each run of these tests they are others."""


@pytest.fixture
def local(tmp_path: Path) -> LocalRuns:
    return LocalRuns(f"local://{tmp_path}/queue")


@pytest.fixture
def kfp(platform: Platform) -> Iterator[Runs]:
    runs = connect(platform.but(runs=f"kfp+{os.environ['FLYWHEEL_KFP_HOST']}")).runs
    yield runs
    for state in runs.list(100):
        if state.request.name.startswith(OURS):
            runs.cancel(state)


@pytest.fixture(params=["local", pytest.param("kfp", marks=pytest.mark.kfp)])
def runs(request: pytest.FixtureRequest) -> Runs:
    found: Runs = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{OURS}-{abs(hash(request.node.name)) % 10**6}"


def asked(name: str, at: float = 1.0, **parameters: str | int | float | bool) -> RunRequest:
    return RunRequest(name=name, pipeline="flywheel", parameters={"source": "s3://x", **parameters}, reason="so", at=at)


def ended(name: str, reason: str = "as it should", exit_code: int = 0) -> RunEnded:
    return RunEnded(name=name, run="r", decision="promote", reason=reason, exit_code=exit_code)


def timeless(state: RunState | None) -> RunRequest | None:
    """What was asked for; KFP has its own time of it."""
    return state and state.request.but(at=1.0)


def test_what_is_asked_for_is_found_as_it_was_asked(runs: Runs, name: str) -> None:
    request = asked(name, epochs=3, margin=0.02, start_from="champion")
    assert runs.start(request)
    found = runs.find(name)
    assert found
    assert timeless(found) == request
    assert not found.over
    assert not found.run or timeless(runs.find(found.run)) == request


def test_what_was_never_asked_for_is_not_found(runs: Runs, name: str) -> None:
    assert runs.find(name) is None
    assert runs.find(str(uuid.uuid4())) is None
    assert [state for state in runs.list(10) if state.request.name == name] == []


def test_a_name_is_started_once_and_the_first_one_stands(runs: Runs, name: str) -> None:
    assert runs.start(asked(name, epochs=3))
    assert not runs.start(asked(name, epochs=3))
    assert not runs.start(asked(name, epochs=4))
    assert timeless(runs.find(name)) == asked(name, epochs=3)


def test_of_many_at_once_one_starts_it(runs: Runs, name: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        new = list(pool.map(lambda number: runs.start(asked(name, epochs=number + 1)), range(16)))
    assert new.count(True) == 1
    (found,) = [state for state in runs.list(100) if state.request.name == name]
    assert timeless(found) == asked(name, epochs=new.index(True) + 1)


def test_the_newest_comes_first(runs: Runs, name: str) -> None:
    for number in range(3):
        runs.start(asked(f"{name}-{number}", at=number))
        if not isinstance(runs, LocalRuns):
            time.sleep(1)  # KFP counts in seconds
    found = [state.request.name for state in runs.list(2)]
    assert found == [f"{name}-2", f"{name}-1"]


def test_a_run_that_is_cancelled_is_over_and_stays_so(runs: Runs, name: str) -> None:
    runs.start(asked(name))
    found = runs.find(name)
    assert found
    runs.cancel(found)
    wait_for(lambda: (state := runs.find(name)) is not None and state.over, 60)
    over = runs.find(name)
    assert over
    assert over.state in ("cancelled", "failed")  # KFP calls what was terminated failed
    runs.cancel(over)
    assert not runs.start(asked(name))


@pytest.mark.parametrize("name", ["", ".hidden", "../x", "a/b", "a b", "x" * 129, "a\n"])
def test_what_is_no_name_is_refused(name: str, runs: Runs) -> None:
    with pytest.raises(UserError, match="is no name of a run"):
        runs.start(asked(name))


def test_a_platform_without_runs_says_so(platform: Platform) -> None:
    assert isinstance(connect(platform).runs, LocalRuns)
    with pytest.raises(UserError, match="runs is missing"):
        _ = connect(platform.but(runs="")).runs


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_what_has_not_ended_waits_in_order(order: list[int], done: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        local = LocalRuns(f"local://{folder}")
        for number in order:
            local.start(asked(f"r-{number}", at=number))
        for number in done:
            local.end(ended(f"r-{number}"))
        assert [request.at for request in local.waiting()] == sorted(set(range(6)) - done)
        assert len(local.list(10)) == 6


@pytest.mark.parametrize(("code", "state"), [(0, "succeeded"), (4, "succeeded"), (1, "failed"), (3, "failed")])
def test_how_a_run_ended_is_what_its_exit_code_says(code: int, state: str, local: LocalRuns) -> None:
    local.start(asked("x"))
    local.end(ended("x", exit_code=code))
    found = local.find("x")
    assert found
    assert (found.state, found.run, found.reason) == (state, "r", "as it should")


def test_a_run_that_somebody_may_be_at_work_on_is_not_cancelled(local: LocalRuns) -> None:
    local.start(asked("x"))
    found = local.find("x")
    assert found
    with local.hold(), pytest.raises(Conflict, match="flywheel watch is at work"):
        local.cancel(found)


def test_the_first_word_on_a_run_stands(local: LocalRuns) -> None:
    local.start(asked("x"))
    local.end(ended("x", "first"))
    local.end(ended("x", "second"))
    assert local.ended("x") == ended("x", "first")
    assert not local.start(asked("x"))


def test_a_damaged_request_is_named_with_its_file(local: LocalRuns) -> None:
    local.folder.mkdir()
    (local.folder / "x.json").write_text('{"name": "x"}')
    with pytest.raises(Corrupt, match=r"x\.json.*Next: mend .*x\.json by hand"):
        local.waiting()


def test_a_folder_that_cannot_be_written_is_said(local: LocalRuns) -> None:
    local.folder.write_text("a file where a folder is wanted")
    with pytest.raises(PlatformError, match="could not be written"):
        local.start(asked("x"))


def test_of_two_watchers_the_second_is_told_of_the_first(local: LocalRuns) -> None:
    with local.hold(), pytest.raises(Conflict, match=rf"process {os.getpid()}.*kill {os.getpid()}"):
        local.hold().__enter__()
    with local.hold():
        pass


def test_a_watcher_that_was_killed_holds_nothing(local: LocalRuns) -> None:
    code = (
        "import sys\nfrom kfp_flywheel.components.runtime.adapters.local.runs import LocalRuns\n"
        f"with LocalRuns({f'local://{local.folder}'!r}).hold(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Conflict, match=f"process {other.pid}"):
            local.hold().__enter__()
        other.kill()
    with local.hold():
        pass
