"""The training job: `python -m kfp_flywheel.components.train.job SPEC_URI`, on any machine that reaches the store."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

from ..recipes.detection.architectures import find
from ..recipes.detection.checkpoints import saved
from ..runtime.artifacts import Epoch
from ..runtime.errors import FlywheelError, JobFailed, UserError
from ..runtime.lines import say
from ..runtime.manifests import load
from ..runtime.orders import reason, work
from ..runtime.ports import Store
from .cluster import fit
from .spec import Progress, TrainSpec
from .tracking import Tracker
from .worker import read_weights

LOOK_S = 0.5


def run(spec: TrainSpec, store: Store, attempt: str) -> None:
    """Check, train under Ray, and see that the package's manifest is there, which is written last.

    Raises:
        UserError: The parent's checkpoint does not fit, or the machine lacks what is asked for.
        PlatformError: MLflow or the store is away.
        JobFailed: Training failed more often than is to be expected of machines.
    """
    check(spec, store)
    before = saved(store, spec.checkpoints)
    if before:
        say(f"train: epoch {before[-1].epoch}/{spec.config.epochs} was reached before; it goes on from there")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(Tracker.open, spec, lambda line: say(f"train: {line}"))
        status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
        try:
            with _followed(spec, store, attempt, opening, before[-1].curve if before else ()):
                problem = fit(spec, attempt, lambda: opening.result().run)
            if not store.exists(spec.result_key):
                raise reason(store, spec.folder, attempt) or JobFailed(problem or "training ended without a package.")
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            if opening.exception() is None:
                opening.result().close(status)


def check(spec: TrainSpec, store: Store) -> None:
    """Refuse what cannot work, before anything is started.

    Raises:
        UserError: Names the value and the limit.
    """
    config = spec.config
    find(config.architecture)
    if spec.parent:
        parent = read_weights(store, spec.parent)
        if parent["architecture"] != config.architecture:
            raise UserError(
                f"architecture is {config.architecture!r}, the champion's checkpoint is of {parent['architecture']!r}.",
                "give -p start_from=scratch, or the champion's architecture",
            )
    if config.gpus_per_worker and not os.environ.get("RAY_ADDRESS"):
        import torch

        found, wanted = torch.cuda.device_count(), config.workers * config.gpus_per_worker
        if wanted > found:
            raise UserError(
                f"workers × gpus_per_worker is {wanted}, and this machine has {found} GPUs.",
                "lower workers, or give -p gpus_per_worker=0 to train on CPUs",
            )


@contextmanager
def _followed(
    spec: TrainSpec, store: Store, attempt: str, opening: "Future[Tracker]", curve: Sequence[Epoch]
) -> Iterator[None]:
    """Meanwhile, hand on what the workers say: to whoever watches, and to MLflow."""
    prefix, seen, over = f"{spec.folder}progress/{attempt}/", set[str](), threading.Event()
    broken: list[FlywheelError] = []
    epochs = list(curve)  # what went before; MLflow may have missed some of it

    def look() -> None:
        news = [key for key in store.list(prefix) if key not in seen]
        records = [load(store, key, Progress) for key in news]
        seen.update(news)
        for record in records:
            _tell(record, spec.config.epochs, say)
        epochs.extend(record.epoch for record in records if record.epoch)
        if opening.done() and opening.exception() is None:
            opening.result().log(epochs)
            epochs.clear()

    def follow() -> None:
        while not over.wait(LOOK_S):
            try:
                look()
                broken.clear()
            except FlywheelError as error:
                if not broken:
                    say(f"train: progress cannot be read: {error}")
                broken[:] = [error]

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


def _tell(record: Progress, epochs: int, say: Callable[[str], None]) -> None:
    if record.epoch:
        found = record.epoch
        score = found.metrics.get("map50")
        shown = f"mAP50 {score:.3f}" if score is not None else "no mAP50"
        say(f"train: epoch {found.epoch}/{epochs} · {shown} · {found.seconds:.1f} s")
    if record.note:
        say(f"train: {record.note}")


if __name__ == "__main__":
    work(TrainSpec, sys.argv[1], run)
