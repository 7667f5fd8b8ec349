"""`make bench-loop`: what the wheel decides, how surely and how soon. Half an hour; nothing else may be at work."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from .figures import BENCH, Figure, publish
from .local import peak_memory

PARTS = ("gateway", "rollouts", "canary", "shadow", "drift")
"""Programs of their own: some divide their work over processes, which no process with threads may."""


def demo() -> list[Figure]:
    """The demo as a user plays it."""
    program = str(Path(sys.executable).with_name("flywheel"))
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder, peak_memory() as peak:
        command = [program, "demo", "--root", f"{folder}/demo", "--json"]
        played = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    before, after = played["new_holdout"]["v1"], played["new_holdout"]["v2"]
    stable = sum(count for version, count in played["failed"].items() if version != "v3")
    decisions = f"{', '.join(played['monitor'])}; {', '.join(played['rollouts'])}"
    return [
        Figure("demo", played["seconds"], "s", "<=", 360, decisions),
        Figure("demo, peak memory", round(peak[0], 2), "GiB", "<=", 6),
        Figure("demo, mAP50 gained on new holdout", round(after - before, 3), "", ">=", 0.1, f"before: {before:.3f}"),
        Figure("demo, requests that stable versions failed", stable, "", "<=", 0, f"{played['requests']} requests"),
    ]


def main() -> None:
    figures = demo()
    publish("demo", figures)
    for part in PARTS:
        subprocess.run([sys.executable, "-m", f"tests.bench.{part}"], check=True)
        figures += [Figure(**found) for found in json.loads((BENCH / f"{part}.json").read_bytes())]
    publish("loop", figures)


if __name__ == "__main__":
    main()
