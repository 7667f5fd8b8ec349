"""Train a detector: ultralytics' own loop, made to resume bit for bit and to work in a process group made elsewhere.

ultralytics reads RANK and WORLD_SIZE when it is imported, so this module is imported when they are set.
"""

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import unwrap_model

from ...runtime.artifacts import Epoch
from ...runtime.config import Train
from ...runtime.errors import UserError
from .checkpoints import Checkpoints

Weights = dict[str, Tensor]
METRICS = {
    "metrics/mAP50(B)": "map50",
    "metrics/mAP50-95(B)": "map",
    "metrics/precision(B)": "precision",
    "metrics/recall(B)": "recall",
}


@dataclass(frozen=True)
class Plan:
    """What one worker is to do.

    Args:
        config: The stage's section; `batch` is divided over the workers.
        architecture: From which ultralytics builds the model.
        data: The data set's data.yaml.
        cache: ultralytics' `cache` argument.
        folder: Scratch.
        workers: Size of the process group that this process is in; 1 needs none.
        device: "cpu", or the number of this worker's GPU.
        parent: fp32 weights to start from; none starts from random ones.
    """

    config: Train
    architecture: Path
    data: Path
    cache: str | bool
    folder: Path
    workers: int = 1
    device: str = "cpu"
    parent: Weights | None = None


@dataclass(frozen=True)
class Trained:
    """The best weights by validation (the moving average, fp32), and how it went."""

    weights: Weights
    curve: tuple[Epoch, ...]


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of parameters and buffers, by name."""
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        found.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode() + value.numpy().tobytes())
    return found.hexdigest()


def model_of(architecture: Path, names: tuple[str, ...], weights: Weights) -> torch.nn.Module:
    """The network with these weights, ready to be exported: fp32, on the CPU, in evaluation mode."""
    model = DetectionModel(str(architecture), nc=len(names), ch=3, verbose=False)
    model.load_state_dict(weights)
    model.names = dict(enumerate(names))
    result: torch.nn.Module = model.float().eval()
    return result


def settings(plan: Plan) -> dict[str, Any]:
    """ultralytics' arguments for a plan."""
    config = plan.config
    return {
        "model": str(plan.architecture),
        "data": str(plan.data),
        "project": str(plan.folder),
        "name": "ultralytics",
        "exist_ok": True,
        "device": plan.device,
        "epochs": config.epochs,
        "patience": 0,  # the number of epochs is the person's to choose
        "imgsz": config.image_size,
        "batch": config.batch,
        "nbs": config.batch,  # a step of the optimizer each batch, and weight decay as it is written
        "optimizer": "AdamW",
        "lr0": config.learning_rate,
        "warmup_epochs": min(3.0, 0.1 * config.epochs),
        "cls": config.class_gain,
        "mosaic": config.mosaic,
        "close_mosaic": min(10, config.epochs // 4) if config.mosaic else 0,
        "fliplr": config.flip,
        "scale": config.scale,
        "seed": config.seed,
        "deterministic": True,
        "cache": plan.cache,
        # On CPUs, loader processes and the threads of torch wait for one another: an epoch took up to 20 times as long.
        "workers": config.cpus_per_worker if config.gpus_per_worker else 0,
        "amp": False,
        "pretrained": False,
        "plots": False,
        "save": False,
    }


def train(plan: Plan, checkpoints: Checkpoints, on_epoch: Callable[[Epoch], None]) -> Trained:
    """Train to the end, from the newest checkpoint if there is one. Every worker calls this; all get the same.

    Args:
        on_epoch: Called in worker 0 after each epoch, when its checkpoint is whole.

    Raises:
        UserError: The loss grew beyond all numbers.
    """
    found = checkpoints.newest()
    if found and found[0]["epoch"] == plan.config.epochs:
        return Trained(found[0]["best"], found[1])
    detector = Detector(plan, checkpoints, on_epoch, found)
    detector.train()
    return Trained(detector.best, tuple(detector.curve))


class Detector(DetectionTrainer):  # type: ignore[misc]
    """ultralytics' trainer, changed where it would lose state or ignore its surroundings.

    Its name lacks "Trainer" on purpose: to what is so named ultralytics adds callbacks that talk to its platform.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoints: Checkpoints,
        on_epoch: Callable[[Epoch], None],
        found: tuple[dict[str, Any], tuple[Epoch, ...]] | None = None,
    ) -> None:
        self.plan, self.checkpoints, self.on_epoch = plan, checkpoints, on_epoch
        self.state = found[0] if found else None
        self.curve: list[Epoch] = list(found[1]) if found else []
        self.best: Weights = self.state["best"] if self.state else {}
        self.best_seen: float = self.state["best_fitness"] if self.state else -math.inf
        super().__init__(overrides=settings(plan))
        self.world_size = 1  # so that it neither makes a process group nor wraps the model for GPUs
        # It takes all threads but one of the machine, whatever it was given.
        self.add_callback("on_train_start", lambda _: torch.set_num_threads(plan.config.cpus_per_worker))
        self.add_callback("on_train_epoch_start", lambda _: self._seed())
        self.add_callback("on_fit_epoch_end", lambda _: self._keep())

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        model = super().get_model(cfg, weights, verbose)
        if self.plan.parent is not None:
            model.load_state_dict(self.plan.parent)
        return model

    def _build_train_pipeline(self) -> None:
        if self.optimizer is not None:  # it comes back with half the batch when a GPU's memory is full
            batch = self.plan.config.batch
            raise UserError(
                f"batch is {batch}: that does not fit the GPU's memory.", f"try -p batch={max(batch // 2, 1)}"
            )
        self.world_size = self.plan.workers
        if self.world_size > 1:
            self.model: Any = DistributedDataParallel(
                self.model,
                device_ids=None if self.device.type == "cpu" else [self.device.index],
                forward_sync_buffers=False,
            )
        super()._build_train_pipeline()

    def resume_training(self, ckpt: Any) -> None:
        """Ours, in fp32: its own checkpoint makes the fp16 average the model, and forgets the optimizer's precision."""
        if self.state is None:
            return
        unwrap_model(self.model).load_state_dict(self.state["model"])
        self.ema.ema.load_state_dict(self.state["ema"])
        self.ema.updates = self.state["updates"]
        self.optimizer.load_state_dict(self.state["optimizer"])
        self.best_fitness = self.state["best_fitness"]
        self.start_epoch = self.state["epoch"]
        self.state = None

    def _seed(self) -> None:
        """Every epoch draws from its own seeds, so that one that is run again draws the same as the first time."""
        seeds = np.random.SeedSequence((self.args.seed, self.epoch, max(RANK, 0))).generate_state(4)
        random.seed(int(seeds[0]))
        np.random.seed(seeds[1])
        torch.manual_seed(int(seeds[2]))
        loader = self.train_loader
        loader.generator.manual_seed(int(seeds[3]))
        if loader.num_workers == 0:
            loader.reset()  # a new iterator draws a number once; now each epoch does
        dataset = loader.dataset
        if dataset.cache != "ram":
            # Mosaics are made of recently used images, which a new process has none of.
            for index in dataset.buffer:
                dataset.ims[index] = None
            count = min(len(dataset), max(dataset.max_buffer_length - 1, 0))
            dataset.buffer = random.sample(range(len(dataset)), count)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """A loss that is no number ends the training in every worker; ultralytics would go back and try again."""
        seen = [float(self.loss.detach()), float(self.fitness or 0)]
        lost = [not all(map(math.isfinite, seen))]
        if self.plan.workers > 1:
            everywhere: list[Any] = [None] * self.plan.workers
            distributed.all_gather_object(everywhere, lost[0])
            lost = everywhere
        if any(lost):
            rate = self.plan.config.learning_rate
            raise UserError(
                f"in epoch {epoch + 1} the loss was no number any more with learning_rate {rate:g}.",
                f"try -p learning_rate={rate / 4:.2g}",
            )
        return False

    def _keep(self) -> None:
        """After an epoch, in worker 0: the best weights, the curve, the checkpoint. Other workers hold nothing else."""
        if RANK > 0:
            return
        fitness = float(self.fitness)
        if fitness >= self.best_seen:
            self.best_seen, self.best = fitness, _copy(self.ema.ema.state_dict())
        measured = {name: float(self.metrics[key]) for key, name in METRICS.items()}
        losses = {
            **self.label_loss_items(self.tloss),
            **{k: v for k, v in self.metrics.items() if k.startswith("val/")},
        }
        measured |= {name.removesuffix("_loss"): float(value) for name, value in losses.items()}
        measured["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        finite = {name: value for name, value in measured.items() if math.isfinite(value)}
        epoch = Epoch(epoch=self.epoch + 1, seconds=round(self.epoch_time, 3), metrics=finite)
        self.curve.append(epoch)
        if self.checkpoints.is_due(epoch.epoch):
            state = {
                "epoch": epoch.epoch,
                "model": unwrap_model(self.model).state_dict(),
                "ema": self.ema.ema.state_dict(),
                "updates": self.ema.updates,
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "best_fitness": self.best_seen,
            }
            self.checkpoints.save(epoch.epoch, state, tuple(self.curve))
        self.on_epoch(epoch)

    def save_model(self) -> bool:
        return True  # checkpoints are ours

    def final_eval(self) -> None:
        """None: the package is judged, on the holdout, by another stage."""


def _copy(weights: Mapping[str, Tensor]) -> Weights:
    return {name: value.detach().cpu().clone() for name, value in weights.items()}
