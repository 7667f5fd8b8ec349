"""A step without work of its own, through our runtime and without it: what a step costs by itself."""

import sys
import tempfile
import time
import warnings
from pathlib import Path

from kfp import dsl, local
from kfp_flywheel.components.runtime import images
from kfp_flywheel.components.runtime.config import Platform


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def ours(platform: str, run_id: str) -> str:
    """Connect, do nothing, record it."""
    from kfp_flywheel.components.runtime.step import step

    with step("noop", platform, run_id) as here:
        here.sentence = "nothing was done"
    return here.name


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def bare() -> str:
    """Do nothing."""
    return "noop"


@dsl.pipeline(name="noops-ours")
def noops_ours(platform: str) -> None:
    """Ten steps in a row."""
    before = None
    for _ in range(10):
        task = ours(platform=platform, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        before = task.after(before) if before else task


@dsl.pipeline(name="noops-bare")
def noops_bare() -> None:
    """Ten steps in a row."""
    before = None
    for _ in range(10):
        task = bare()
        before = task.after(before) if before else task


def main(kind: str) -> None:
    """Print the seconds that one of ten steps costs."""
    with tempfile.TemporaryDirectory() as folder:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder)
        start = time.perf_counter()
        if kind == "ours":
            noops_ours(platform=Platform.local(Path(folder)).line())
        else:
            noops_bare()
        print(f"\n{(time.perf_counter() - start) / 10:.4f}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local\.subprocess_task_handler")
    main(sys.argv[1])
