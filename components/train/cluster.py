"""Ray Train for one training."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ..runtime.lines import say
from ..runtime.raycluster import ray_up
from .spec import TrainSpec
from .worker import work

MAX_FAILURES = 3


def fit(spec: TrainSpec, attempt: str, tracking_run: Callable[[], str]) -> str:
    """Run the workers to their end. A group that lost a worker is started again, and continues.

    Args:
        attempt: Names this start of the job.
        tracking_run: Gives the id of the MLflow run; asked when Ray is up, for both take seconds to come up.

    Returns:
        What went wrong, for a person; empty if nothing did.

    Raises:
        PlatformError: Ray does not come up.
    """
    started, config = time.monotonic(), spec.config
    with ray_up(config.workers * config.cpus_per_worker, config.workers * config.gpus_per_worker) as folder:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig

        storage = f"{folder}/results" if folder else f"{spec.platform.store}/{spec.folder}ray"
        gpus = {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
        trainer = _trainer_class()(
            work,
            train_loop_config={"spec": spec.line(), "attempt": attempt, "tracking_run": tracking_run()},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": config.cpus_per_worker, **gpus},
            ),
            run_config=RunConfig(
                name=attempt, storage_path=storage, failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )
        say(f"train: Ray is up after {time.monotonic() - started:.1f} s")
        try:
            trainer.fit()
        except TrainingFailedError as error:
            print(error, file=sys.stderr)
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            return f"training failed {MAX_FAILURES + 1} times, the last time with: {lines[-1].strip()}"
    return ""


def _trainer_class() -> Any:
    """Ray's TorchTrainer; on this machine without the helpers that only a cluster needs, each a process of 2 s."""
    from ray.train.torch import TorchTrainer

    if os.environ.get("RAY_ADDRESS"):
        return TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class LocalTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unneeded)]

    return LocalTrainer
