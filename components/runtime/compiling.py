"""A pipeline's YAML by a program of its own: in a step, KFP cannot compile. It may begin before it is wanted."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from .config import Platform
from .errors import PlatformError

COMPILER = "kfp_flywheel.pipelines.catalogue"


def compiled(pipeline: str, platform: Platform) -> str:
    """The YAML of a pipeline for a platform.

    Raises:
        PlatformError: It cannot be compiled.
    """
    return begun(pipeline, platform.line()).result()


@cache
def begun(pipeline: str, platform: str) -> Future[str]:
    """Begin to compile, once: whoever wants the YAML later waits for less."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(_compile, pipeline, platform)
    finally:
        pool.shutdown(wait=False)


def _compile(pipeline: str, platform: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "_KFP_RUNTIME"}
    done = subprocess.run(
        [sys.executable, "-m", COMPILER, pipeline], input=platform, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise PlatformError(f"pipeline {pipeline} cannot be compiled: {last}", "flywheel compile --platform FILE")
    return done.stdout
