"""Ray for one training: the cluster at RAY_ADDRESS, or a small one on this machine that ends with us."""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..runtime.errors import PlatformError
from ..runtime.step import say
from .spec import TrainSpec
from .worker import work

MAX_FAILURES = 3
SOCKET_PATH = 40


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
    started = time.monotonic()
    with _ray(spec) as storage:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig

        config = spec.config
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


@contextmanager
def _ray(spec: TrainSpec) -> Iterator[str]:
    """Start Ray, or connect to it; gives where Ray Train may keep its notes."""
    address = os.environ.get("RAY_ADDRESS")
    scratch = tempfile.gettempdir()
    if len(scratch) > SOCKET_PATH:  # a Unix socket's path has 107 characters at most, and Ray takes 65 of them
        scratch = "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="ray-", dir=scratch, ignore_cleanup_errors=True) as folder:
        os.environ |= {
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_METRICS_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if not address:
            token = Path(folder, "token")  # Ray would put one into the user's home
            token.touch(0o600)
            token.write_text(secrets.token_hex(32))
            os.environ |= {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # here too: it listens on 127.0.0.1 only
                "RAY_prestart_worker_first_driver": "0",  # Ray Train's workers cannot be made of those
                "RAY_enable_worker_prestart": "0",
                "RAY_worker_niceness": "0",  # by default they give way to everything else
            }
        import ray

        config = spec.config
        here: dict[str, Any] = {
            "num_cpus": config.workers * config.cpus_per_worker,
            "num_gpus": config.workers * config.gpus_per_worker,
            "include_dashboard": False,
            "object_store_memory": 128 * 2**20,
            "_temp_dir": folder,
        }
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else here))
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            raise PlatformError(f"Ray at {address or 'this machine'} does not come up: {error}") from error
        try:
            yield f"{spec.platform.store}/{spec.folder}ray" if address else f"{folder}/results"
        finally:
            ray.shutdown()
