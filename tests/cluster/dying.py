"""A rollout that kills itself: `python -m tests.cluster.dying WRITES PLATFORM ENDPOINT NEW OLD RUN`, releases as files.

After so many writes, to the endpoint or to the store, it is dead at once; 0 is never.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.s3 import S3Store
from kfp_flywheel.components.runtime.artifacts import Release
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.wiring import connect

from tests.canaries import roll

from .rollouts import QUICK


def dying(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """The function, after whose last call nobody lives."""

    def call(*given: Any, **named: Any) -> Any:
        result = function(*given, **named)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def main(writes: str, platform: str, endpoint: str, new: str, old: str, run: str) -> None:
    left = [int(writes)]
    KServe.write = dying(KServe.write, left)  # type: ignore[method-assign]
    S3Store.put = dying(S3Store.put, left)  # type: ignore[method-assign]
    world = connect(Platform.parse(platform))
    ended = roll(world, Release.read(new), Release.read(old), run, print, **QUICK, endpoint=endpoint)
    print(ended.decision, ended.reason)


if __name__ == "__main__":
    main(*sys.argv[1:])
