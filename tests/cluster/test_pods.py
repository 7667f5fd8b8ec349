"""RayJobs in real pods. The pods run this repository's own environment, mounted from the node."""

from collections.abc import Callable

import pytest
from kfp_flywheel.components.runtime.adapters.rayjob.jobs import RayJobs
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import FlywheelError, JobFailed
from kfp_flywheel.components.runtime.ports import JobSpec


@pytest.fixture
def jobs(namespace: str, platform: Platform) -> RayJobs:
    return RayJobs(namespace, platform.pods)


@pytest.fixture
def job(train_image: str) -> Callable[[str], JobSpec]:
    return lambda what: JobSpec("job-1", "tests.adapters.program", what, "h1", train_image, deadline_s=280)


def test_a_job_runs_to_its_end_and_its_lines_are_heard(jobs: RayJobs, job: Callable[[str], JobSpec]) -> None:
    lines: list[str] = []
    jobs.submit(job("end"))
    jobs.wait("job-1", lines.append)
    assert lines.count("at work") == 1
    assert lines.count("done") == 1


def test_a_job_that_fails_says_why(jobs: RayJobs, job: Callable[[str], JobSpec]) -> None:
    lines: list[str] = []
    jobs.submit(job("fail"))
    with pytest.raises(FlywheelError) as found:
        jobs.wait("job-1", lines.append)
    assert isinstance(found.value, JobFailed)
    assert "AppFailed" in str(found.value)
    assert "the reason stands here" in str(found.value)
