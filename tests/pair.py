"""One of two workers that train together, without Ray: `python -m tests.pair RANK PORT FOLDER DATA TOGETHER`.

Writes what it has in the end to FOLDER/rank-RANK.npz. TOGETHER is 0 for the negative control: no DDP.
"""

import os
import sys
from pathlib import Path

rank, port, folder, data, together = (
    int(sys.argv[1]),
    sys.argv[2],
    Path(sys.argv[3]),
    Path(sys.argv[4]),
    sys.argv[5] == "1",
)
os.environ |= {
    "RANK": str(rank),
    "LOCAL_RANK": str(rank),
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": port,
    "OMP_NUM_THREADS": "1",
}

from kfp_flywheel.components.recipes.detection.offline import confine  # noqa: E402

confine(folder / f"settings-{rank}")

import numpy as np  # noqa: E402
from kfp_flywheel.components.recipes.detection import trainer  # noqa: E402
from kfp_flywheel.components.recipes.detection.architectures import find  # noqa: E402
from kfp_flywheel.components.recipes.detection.checkpoints import Checkpoints  # noqa: E402
from kfp_flywheel.components.runtime.config import Train  # noqa: E402
from kfp_flywheel.components.runtime.wiring import open_store  # noqa: E402
from torch import distributed  # noqa: E402
from ultralytics.utils.torch_utils import unwrap_model  # noqa: E402

from tests.training import SMALL  # noqa: E402

if not together:
    trainer.DistributedDataParallel = lambda model, **_: model
distributed.init_process_group("gloo", rank=rank, world_size=2)
config = Train.of(**{**SMALL, "workers": 2, "cpus_per_worker": 1, "epochs": 2})
plan = trainer.Plan(config, find("narrow"), data, "ram", folder / f"rank-{rank}", workers=2)
checkpoints = Checkpoints(open_store(f"file://{folder}/store"), "checkpoints/", config.epochs, print)
detector = trainer.Detector(plan, checkpoints, lambda epoch: None)
seen: set[str] = set()
detector.add_callback("on_train_batch_start", lambda _: None)
preprocess = detector.preprocess_batch


def note(batch: dict[str, object]) -> dict[str, object]:
    if detector.epoch == 0:
        seen.update(Path(name).name for name in batch["im_file"])  # type: ignore[attr-defined]
    return preprocess(batch)


detector.preprocess_batch = note
detector.train()
weights = {name: value.detach().numpy() for name, value in unwrap_model(detector.model).named_parameters()}
average = {f"ema.{name}": value.detach().numpy() for name, value in detector.ema.ema.named_parameters()}
np.savez(folder / f"rank-{rank}.npz", **weights, **average, seen_images=np.array(sorted(seen)))
distributed.destroy_process_group()
