"""Training by the train stage against plain ultralytics: the same settings, images and threads, in turn."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from kfp_flywheel.components.runtime.artifacts import ModelPackage

from .. import training
from .figures import Figure, median

CONFIG: dict[str, object] = {"image_size": 160, "epochs": 6, "batch": 8, "learning_rate": 0.01, "class_gain": 1.5}
PAIRS = 3


def training_ratio(data: Path, folder: Path) -> Figure:
    """Seconds of an epoch under the stage, divided by those of plain ultralytics.

    Args:
        data: The data.yaml of a YOLO folder.
        folder: Scratch.
    """
    ratios, peers = [], []
    for number in range(PAIRS):
        config = CONFIG | {"seed": number, "cpus_per_worker": os.cpu_count() or 1}
        ours = staged(data, folder / f"staged-{number}", config)
        peer = plain(data, folder / f"plain-{number}", config)
        ratios.append(ours / peer)
        peers.append(peer)
    return median(
        "training epoch, against plain ultralytics",
        ratios,
        "×",
        "<=",
        1.05,
        f"ultralytics: {statistics.median(peers):.2f} s an epoch",
    )


def staged(data: Path, folder: Path, config: dict[str, object]) -> float:
    """Median seconds of an epoch, the first one left out, of the stage's own job."""
    training.prepare(folder, data)
    subprocess.run([sys.executable, "-m", "tests.training", str(folder), json.dumps(config)], check=True)
    curve = ModelPackage.read(folder / "package.json").curve
    return statistics.median(epoch.seconds for epoch in curve[1:])


def plain(data: Path, folder: Path, config: dict[str, object]) -> float:
    """The same of ultralytics' own trainer, in a process of its own."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.bench.training", str(data), str(folder), json.dumps(config)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main(data: Path, folder: Path, given: dict[str, object]) -> None:
    """Train, and print the median seconds of an epoch."""
    from kfp_flywheel.components.recipes.detection.offline import confine

    confine(folder)
    import torch
    from kfp_flywheel.components.recipes.detection.architectures import find
    from kfp_flywheel.components.recipes.detection.trainer import Plan, settings
    from kfp_flywheel.components.runtime.config import Train
    from ultralytics.models.yolo.detect import DetectionTrainer

    config = Train.of(**(training.SMALL | given))
    plan = Plan(config=config, architecture=find(config.architecture), data=data, cache="ram", folder=folder)
    os.chdir(data.parent)  # ultralytics takes a relative path in data.yaml from here
    trainer = DetectionTrainer(overrides=settings(plan) | {"val": True, "save": True})
    seconds: list[float] = []
    trainer.add_callback("on_train_start", lambda _: torch.set_num_threads(config.cpus_per_worker))
    trainer.add_callback("on_fit_epoch_end", lambda own: seconds.append(own.epoch_time))
    trainer.train()
    print(statistics.median(seconds[1 : config.epochs]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
