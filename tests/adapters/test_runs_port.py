"""The contract of the Runs port, over every adapter."""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.local.runs import LocalRuns
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import Conflict, Corrupt, PlatformError, UserError
from kfp_flywheel.components.runtime.ports import RunEnded, RunRequest, Runs
from kfp_flywheel.components.runtime.wiring import connect


@pytest.fixture
def local(tmp_path: Path) -> LocalRuns:
    return LocalRuns(f"local://{tmp_path}/queue")


@pytest.fixture(params=["local"])
def runs(request: pytest.FixtureRequest) -> Runs:
    found: Runs = request.getfixturevalue(request.param)
    return found


def asked(name: str, at: float = 1.0, **parameters: str | int | float | bool) -> RunRequest:
    return RunRequest(name=name, pipeline="flywheel", parameters=parameters, reason="because", at=at)


def ended(name: str, reason: str = "as it should") -> RunEnded:
    return RunEnded(name=name, run="r", decision="promote", reason=reason, exit_code=0)


def test_what_is_asked_for_is_found_as_it_was_asked(runs: Runs) -> None:
    request = asked("retrain-1", epochs=3, margin=0.02, start_from="champion", flag=True)
    assert runs.start(request)
    assert runs.find("retrain-1") == request
    assert runs.ended("retrain-1") is None


def test_what_was_never_asked_for_is_not_found(runs: Runs) -> None:
    assert runs.find("x") is None
    assert runs.ended("x") is None
    assert runs.list() == []


def test_a_name_is_started_once_and_the_first_one_stands(runs: Runs) -> None:
    assert runs.start(asked("x", epochs=3))
    assert not runs.start(asked("x", epochs=3))
    assert not runs.start(asked("x", epochs=4))
    assert runs.list() == [asked("x", epochs=3)]


def test_of_many_at_once_one_starts_it(runs: Runs) -> None:
    with ThreadPoolExecutor(8) as pool:
        new = list(pool.map(lambda number: runs.start(asked("x", number=number)), range(32)))
    assert new.count(True) == 1
    assert runs.list() == [asked("x", number=new.index(True))]


def test_the_oldest_comes_first(runs: Runs) -> None:
    for name, at in (("b", 2.0), ("z", 1.0), ("a", 2.0)):
        runs.start(asked(name, at))
    assert [request.name for request in runs.list()] == ["z", "a", "b"]


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
        assert len(local.list()) == 6


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
