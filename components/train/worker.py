"""What each Ray Train worker does: data, training, and in worker 0 the package."""

import contextlib
import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipes.detection.architectures import find
from ..recipes.detection.checkpoints import Checkpoints
from ..recipes.detection.data import cache_mode, materialize, samples_of
from ..recipes.detection.offline import confine
from ..runtime.artifacts import Checkpoint, ModelPackage, Sample, content_id
from ..runtime.blobs import get_blob, put_blob
from ..runtime.errors import AlreadyExists, FlywheelError, UserError
from ..runtime.orders import leave
from ..runtime.ports import Store
from ..runtime.records import from_lines
from ..runtime.wiring import open_store
from .spec import Progress, TrainSpec

if TYPE_CHECKING:
    from ..recipes.detection.trainer import Trained

CACHE_SHARE = 0.25


class Voice:
    """What a worker says, as records in the store: they reach the job on any machine, and outlive the worker."""

    def __init__(self, store: Store, folder: str, attempt: str) -> None:
        self._store, self._prefix, self._count = store, f"{folder}progress/{attempt}/", 0

    def tell(self, progress: Progress) -> None:
        key = f"{self._prefix}{time.time_ns():020d}-{os.getpid()}.json"
        self._store.put(key, progress.line().encode())

    def say(self, note: str) -> None:
        self.tell(Progress(note=note))


def work(task: dict[str, Any]) -> None:
    """Run by Ray Train in every worker, with the process group made and RANK, LOCAL_RANK and WORLD_SIZE set.

    Args:
        task: `spec` (TrainSpec as JSON), `store` (its root), `attempt` (names this start of the job), `tracking_run`.
    """
    from ray import train

    spec = TrainSpec.from_json(task["spec"], "the task")
    store = open_store(spec.platform.store)
    context = train.get_context()
    rank, local = context.get_world_rank(), context.get_local_rank()
    # The same folder for all workers of a machine, and another one each time: a killed worker may have left half of it.
    folder = Path(tempfile.gettempdir(), f"{spec.name}-{os.environ['MASTER_PORT']}")
    try:
        _train(spec, store, Voice(store, spec.folder, task["attempt"]), rank, local, folder, task["tracking_run"])
    except FlywheelError as error:
        leave(store, spec.folder, task["attempt"], error)
        # A user's error comes up in all workers alike; to Ray it is a good end, for it would try the same again.
        if not isinstance(error, UserError):
            raise
    finally:
        if local == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _train(spec: TrainSpec, store: Store, voice: Voice, rank: int, local: int, folder: Path, tracking_run: str) -> None:
    confine(folder / f"settings-{rank}")
    import ray.train.torch
    from torch import distributed

    config = spec.config
    if local == 0:
        materialize(store, spec.dataset, folder / "data")
    if config.workers > 1:
        distributed.barrier()
    from ..recipes.detection import trainer

    fitted = [sample for sample in samples_of(store, spec.dataset) if sample.split in ("train", "val")]
    share = int(CACHE_SHARE * _memory() / int(os.environ["LOCAL_WORLD_SIZE"]))
    plan = trainer.Plan(
        config=config,
        architecture=find(config.architecture),
        data=folder / "data" / "data.yaml",
        cache=cache_mode(fitted, config.image_size, share),
        folder=folder / f"rank-{rank}",
        workers=config.workers,
        device=str(ray.train.torch.get_device().index) if config.gpus_per_worker else "cpu",
        parent=read_weights(store, spec.parent)["weights"] if spec.parent else None,
    )
    checkpoints = Checkpoints(store, spec.checkpoints, config.epochs, voice.say)
    trained = trainer.train(plan, checkpoints, lambda epoch: voice.tell(Progress(epoch=epoch)))
    if rank == 0:
        voice.say("the model is exported and packaged")
        _package(spec, store, trained, folder / "package", tracking_run)


def _package(spec: TrainSpec, store: Store, trained: "Trained", folder: Path, tracking_run: str) -> None:
    """Write all that the package points at, then its manifest."""
    import torch

    from ..recipes.detection.package import build
    from ..recipes.detection.predict import PackageConfig
    from ..recipes.detection.trainer import digest, model_of

    names, config = spec.dataset.names, spec.config
    model = model_of(find(config.architecture), names, trained.weights)
    holdout = from_lines(get_blob(store, spec.dataset.holdouts[0].index), Sample)
    folder.mkdir(parents=True)
    settings = PackageConfig(names=names, image_size=config.image_size)
    files = build(model, settings, [(get_blob(store, sample.image), sample) for sample in holdout], folder)
    blobs = {name: put_blob(store, path, path.suffix) for name, path in files.items()}
    buffer = io.BytesIO()
    torch.save({"architecture": config.architecture, "names": list(names), "weights": trained.weights}, buffer)
    checkpoint = Checkpoint(blob=put_blob(store, buffer.getvalue(), ".pt"), digest=digest(trained.weights))
    content = [spec.dataset.id, names, checkpoint.digest, {name: blob.sha256 for name, blob in blobs.items()}]
    package = ModelPackage(
        id=content_id(content),
        lineage=spec.lineage,
        family="detection",
        names=names,
        dataset=spec.dataset.id,
        files=blobs,
        checkpoint=checkpoint,
        curve=trained.curve,
        tracking_run=tracking_run,
    )
    with contextlib.suppress(AlreadyExists):  # another run of this very job was quicker
        store.put(spec.result_key, package.to_json())


def read_weights(store: Store, checkpoint: Checkpoint) -> dict[str, Any]:
    """A package's checkpoint: `architecture`, `names` and `weights` (fp32, by name).

    Raises:
        Corrupt: It is not the one that was written.
    """
    import torch

    content: dict[str, Any] = torch.load(
        io.BytesIO(get_blob(store, checkpoint.blob)), map_location="cpu", weights_only=True
    )
    return content


def _memory() -> int:
    """Bytes of memory that this machine, or this container, has."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return found if text == "max" else min(found, int(text))
