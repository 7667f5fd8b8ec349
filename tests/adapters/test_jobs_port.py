"""The contract of the Jobs port, over every adapter."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from kfp_flywheel.components.runtime.adapters.local.jobs import LocalJobs
from kfp_flywheel.components.runtime.adapters.rayjob.jobs import RayJobs
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import Conflict, JobFailed
from kfp_flywheel.components.runtime.ports import Jobs, JobSpec


@pytest.fixture(params=["local", pytest.param("rayjob", marks=pytest.mark.cluster)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def jobs(kind: str, request: pytest.FixtureRequest) -> Jobs:
    if kind == "local":
        return LocalJobs()
    platform: Platform = request.getfixturevalue("cluster_platform")
    return RayJobs(platform.jobs_namespace, platform.pods)


@pytest.fixture
def image(kind: str, request: pytest.FixtureRequest) -> str:
    return "" if kind == "local" else str(request.getfixturevalue("train_image"))


def spec(what: str, image: str = "", hash: str = "1", deadline_s: float = 280) -> JobSpec:
    return JobSpec("job", "tests.adapters.program", what, hash, image, deadline_s=deadline_s)


def gone(pid: int) -> bool:
    """Wait for a process to end; it may be a zombie if nobody reaps it."""
    try:
        process = psutil.Process(pid)
        process.wait(20)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    return True


class Follower(threading.Thread):
    """Waits for a job in a thread, and hands on the process ids that it prints."""

    def __init__(self, jobs: Jobs, name: str) -> None:
        super().__init__()
        self.jobs, self.job = jobs, name
        self.pids: list[int] = []
        self.seen = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.jobs.wait(self.job, self.line)
        except Exception as error:
            self.error = error

    def line(self, text: str) -> None:
        if text.startswith("pids "):
            self.pids = [int(pid) for pid in text.split()[1:]]
            self.seen.set()


def test_lines_are_handed_on_in_order(jobs: Jobs, image: str, kind: str) -> None:
    lines: list[str] = []
    jobs.submit(spec("work", image))
    jobs.wait("job", lines.append)
    # Ray's submitter has lines of its own.
    assert [line for line in lines if kind == "local" or line in ("at work", "done")] == ["at work", "done"]


def test_a_failure_tells_the_exit_code_and_the_last_lines(jobs: Jobs, image: str) -> None:
    jobs.submit(spec("fail", image))
    with pytest.raises(JobFailed, match=r"exit code 3(.|\n)*the reason stands here"):
        jobs.wait("job", lambda line: None)


def test_the_same_job_is_adopted_and_another_one_is_refused_until_it_is_cancelled(jobs: Jobs, image: str) -> None:
    jobs.submit(spec("hang", image))
    follower = Follower(jobs, "job")
    follower.start()
    try:
        jobs.submit(spec("hang", image))
        with pytest.raises(Conflict, match=r"another specification|of specification 1, not 2"):
            jobs.submit(spec("hang", image, hash="2"))
    finally:
        assert follower.seen.wait(120)
        jobs.cancel("job")
        follower.join(30)
    assert isinstance(follower.error, JobFailed)
    assert len(follower.pids) == 1
    jobs.cancel("job")
    jobs.cancel("never heard of")


def test_cancel_ends_a_local_job_and_all_that_it_started() -> None:
    jobs = LocalJobs()
    jobs.submit(spec("hang"))
    follower = Follower(jobs, "job")
    follower.start()
    assert follower.seen.wait(30)
    jobs.cancel("job")
    follower.join(30)
    assert all(gone(pid) for pid in follower.pids)


def test_a_local_job_ends_at_its_deadline() -> None:
    jobs = LocalJobs()
    jobs.submit(spec("hang", deadline_s=1))
    follower = Follower(jobs, "job")
    follower.start()
    follower.join(60)
    assert isinstance(follower.error, JobFailed)
    assert all(gone(pid) for pid in follower.pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_local_job_ends_with_whoever_submitted_it(number: signal.Signals) -> None:
    """KFP gives a step no time to clean up, and kill -9 none at all."""
    code = (
        "from kfp_flywheel.components.runtime.adapters.local.jobs import LocalJobs\n"
        "from tests.adapters.test_jobs_port import spec\n"
        "jobs = LocalJobs(); jobs.submit(spec('hang')); jobs.wait('job', lambda line: print(line, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout is not None
        line = next(line for line in step.stdout if line.startswith("pids "))
        os.kill(step.pid, number)
    assert all(gone(int(pid)) for pid in line.split()[1:])
