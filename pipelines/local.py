"""Run a pipeline on this machine by kfp.local, in a process of its own: `python -m kfp_flywheel.pipelines.local PLAN`.

That process is a job like any other: on a leash, so it and all that its steps started end with the caller.
"""

import contextlib
import json
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..components.runtime.adapters.local.jobs import LocalJobs
from ..components.runtime.config import Platform
from ..components.runtime.errors import JobFailed
from ..components.runtime.lines import heard
from ..components.runtime.ports import JobSpec
from ..components.runtime.step import StepRecord, run_records
from ..components.runtime.wiring import connect


@dataclass(frozen=True)
class Run:
    """A pipeline run that ended: its id, its steps, and the reason if it failed."""

    id: str
    steps: list[StepRecord]
    failure: str = ""

    @property
    def exit_code(self) -> int:
        return next((step.exit_code for step in self.steps if step.exit_code), 1) if self.failure else 0


def run(
    name: str, parameters: Mapping[str, object], platform: Platform, log: Path, on_line: Callable[[str], None]
) -> Run:
    """Run a pipeline to its end.

    Args:
        name: Of the pipeline, as `flywheel compile` lists them.
        log: Receives all that the steps print.
        on_line: Is handed each line that a step says to whoever watches.
    """
    started = ""
    jobs = LocalJobs()
    with tempfile.TemporaryDirectory(prefix="flywheel-run-") as scratch, log.open("w") as file:
        plan = Path(scratch, "plan.json")
        plan.write_text(
            json.dumps(
                {
                    "name": name,
                    "parameters": dict(parameters),
                    "platform": platform.line(),
                    "root": scratch,
                }
            )
        )

        def line(text: str) -> None:
            nonlocal started
            print(text, file=file, flush=True)
            if said := heard(text):
                started = started or said.partition("started in run ")[2]
                on_line(said)

        job = f"{name}-{uuid.uuid4().hex[:8]}"
        jobs.submit(JobSpec(name=job, module=__name__, spec_uri=str(plan), spec_hash="", image=""))
        failure = ""
        try:
            jobs.wait(job, line)
        except JobFailed as error:
            failure = str(error)
    steps = run_records(connect(platform).store, started) if started else []
    reason = next((f"{step.step}: {step.sentence}" for step in steps if step.outcome == "failed"), failure)
    return Run(started, steps, reason if failure else "")


def main(plan: Path) -> None:
    """Run the pipeline that a plan names, each step a child process."""
    from kfp import local

    from .catalogue import pipeline

    document = json.loads(plan.read_text())
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local\.subprocess_task_handler")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=f"{document['root']}/artifacts")
    with contextlib.redirect_stderr(sys.stdout):
        pipeline(document["name"])(**document["parameters"], platform=document["platform"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
