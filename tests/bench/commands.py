"""What a person waits for at the command line: `python -m tests.bench.commands PLATFORM_FILE`, or in bench-cluster.

Submitting needs a Kubeflow Pipelines: FLYWHEEL_KFP_HOST, and `runs` in the platform file.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.pipelines.platforms import read_platform

from tests.waiting import wait_for

from .figures import Figure, median, publish

FLYWHEEL = str(Path(sys.executable).with_name("flywheel"))


def timed(*words: str, count: int = 5, codes: tuple[int, ...] = (0,)) -> list[float]:
    """Seconds of a command, again and again, once the disk has been read."""
    samples = []
    for _ in range(count + 1):
        start = time.perf_counter()
        done = subprocess.run([FLYWHEEL, *words], capture_output=True, text=True)
        samples.append(time.perf_counter() - start)
        if done.returncode not in codes:
            raise SystemExit(f"flywheel {' '.join(words)}: {done.stderr or done.stdout}")
    return samples[1:]


def figures(platform: Platform) -> list[Figure]:
    """Doctor and compile on a platform; and submit, if there is a Kubeflow Pipelines."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "platform.yaml")
        file.write_text(json.dumps(platform.plain()))
        given = ("--platform", str(file))
        found = [
            # What is amiss on a platform of tests does not make it quicker: all that there is is looked at.
            median("doctor", timed("doctor", *given, codes=(0, 1)), "s", "<=", 5),
            median("compile of all", timed("compile", *given, "--out", folder, count=3), "s", "<=", 10),
        ]
        if os.environ.get("FLYWHEEL_KFP_HOST") and platform.runs.startswith("kfp+"):
            samples = [_submitted(f"bench-{time.time_ns()}-{number}", *given) for number in range(6)][1:]
            found.append(median("submit to run created", samples, "s", "<=", 2))
        return found


def _submitted(name: str, *given: str) -> float:
    """Seconds until a run of this name is there; it is cancelled, and its pods make room for the next one's."""
    start = time.perf_counter()
    subprocess.run([FLYWHEEL, "submit", "monitor", "--name", name, "--detach", *given], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    subprocess.run([FLYWHEEL, "runs", "cancel", name, *given], check=True, capture_output=True)
    show = [FLYWHEEL, "runs", "show", name, "--json", *given]
    wait_for(lambda: json.loads(subprocess.run(show, capture_output=True).stdout)["state"] == "failed", 60)
    return seconds


if __name__ == "__main__":
    publish("commands", figures(read_platform(Path(".flywheel"), Path(sys.argv[1]))))
