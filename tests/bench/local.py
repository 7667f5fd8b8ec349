"""`make bench-local`: what the flywheel costs, and what it reaches, on this machine."""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.pipelines import running
from kfp_flywheel.pipelines.demo import demo, digits, planted

from .figures import Figure, median, publish
from .training import training_ratio

SEEDS = (0, 1, 2)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Largest sum of proportional set sizes (shared pages divided by their users) of this process's tree, in GiB."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended while we looked
            peak[0] = max(peak[0], total / 2**30)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def command_line() -> Figure:
    """Time of `flywheel --help`."""
    program = str(Path(sys.executable).with_name("flywheel"))
    samples = [seconds(lambda: subprocess.run([program, "--help"], check=True, capture_output=True)) for _ in range(10)]
    return median("flywheel --help", samples, "s", "<=", 0.5)


def steps() -> list[Figure]:
    """Time of a step that does nothing, through our runtime and through KFP alone."""
    program = [sys.executable, "-m", "tests.bench.noop"]

    def cost(kind: str) -> float:
        done = subprocess.run([*program, kind], check=True, capture_output=True, text=True)
        return float(done.stdout.splitlines()[-1])

    pairs = [(cost("ours"), cost("bare")) for _ in range(5)]
    bare = sorted(pair[1] for pair in pairs)[len(pairs) // 2]
    return [
        median("a step without work", [pair[0] for pair in pairs], "s", "<=", 0.15, f"kfp.local alone: {bare:.3f} s"),
        median("a step without work, over kfp.local", [ours - bare for ours, bare in pairs], "s", "<=", 0.15),
    ]


def runs(folder: Path) -> list[Figure]:
    """The demo's data and parameters as a user runs them, then the reuse, then two more seeds of the same training."""
    root = folder / "root"
    planted.plant(digits.write(folder / "data", demo.COUNTS).parent)
    data = folder / "data" / "data.yaml"
    start = time.perf_counter()
    with peak_memory() as peak:
        _flywheel("run", "--data", str(data), "--config", str(demo.CONFIG), "--root", str(root), "--port", "0")
    found = [
        Figure("first run", round(time.perf_counter() - start, 1), "s", "<=", 150),
        Figure("first run, peak memory", round(peak[0], 2), "GiB", "<=", 6),
    ]
    parameters = running.read_parameters(str(data), demo.CONFIG, [])
    early = seconds(lambda: running.run(parameters, Platform.local(root), root, 0, quiet=True))
    for record in (root / "store" / "decisions").rglob("*.json"):
        record.unlink()
    reused = seconds(lambda: running.run(parameters, Platform.local(root), root, 0, quiet=True))
    found += [
        Figure("second run, ended early", early, "s", "<=", 20),
        Figure("second run, every step reused", reused, "s", "<=", 20),
    ]
    scores = [_trained(root, parameters | {"seed": seed}) for seed in SEEDS]
    first = Figure("first run, holdout mAP50", scores[0], "", ">=", 0.75)
    return [*found, first, median(f"holdout mAP50, seeds {SEEDS}", scores, "", ">=", 0.82)]


def _flywheel(*arguments: str) -> None:
    program = str(Path(sys.executable).with_name("flywheel"))
    subprocess.run([program, *arguments], check=True)


def _trained(root: Path, parameters: dict[str, object]) -> float:
    """The holdout mAP50 of the same data under other parameters."""
    from kfp_flywheel.components.runtime.artifacts import EvalReport
    from kfp_flywheel.components.runtime.manifests import find
    from kfp_flywheel.components.runtime.wiring import connect

    platform = Platform.local(root)
    ended = running.run(parameters, platform, root, 0, quiet=False)
    judged = next(step.artifact for step in ended.run.steps if step.step == "evaluate")
    scores = find(connect(platform).store, judged, EvalReport).challenger_scores
    assert scores.map50 is not None
    return scores.map50


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name:
        folder = Path(name)
        figures = [command_line(), *steps(), *runs(folder)]
        data = digits.write(folder / "digits", {"train": 400, "val": 100, "test": 100})
        figures.append(training_ratio(data, folder))
    publish("local", figures)


if __name__ == "__main__":
    main()
