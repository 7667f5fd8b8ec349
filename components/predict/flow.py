"""The flow of images through Ray Data: tasks read shards, actors that hold the model predict; rows come back."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..recipes.detection import golden
from ..recipes.detection.predict import Predictor, decode
from ..runtime.errors import FlywheelError, UserError
from ..runtime.orders import leave
from ..runtime.packages import fetch_package
from ..runtime.ports import Source
from ..runtime.records import from_lines, to_lines
from ..runtime.wiring import open_source, open_store
from .listing import Shard, read_together, root_of
from .parts import PLACED
from .spec import PredictSpec

READS = 16
"""Images of a shard that are read at once: each mostly waits."""
READER_CPUS, PREDICTOR_CPUS = 0.25, 0.5
"""Of a worker's first CPU: what a task that reads is given, and what is left to the actor, so that both find room."""
BLOCK_BYTES = 8 << 20
"""Images go from task to actor in blocks of about this size."""
LIVES = 10
"""Starts of an actor after which it is taken for hopeless: an image may kill it each time, and Ray Data's own limit is
none."""
MOST_BLOCKS = 1000
IMAGES = pa.schema({"shard": pa.int32(), "at": pa.int32(), "path": pa.string(), "content": pa.large_binary()})
Image = tuple[int, int, str, bytes | None]


def predicted(spec: PredictSpec, shards: Sequence[Shard], attempt: str) -> Iterator[pa.Table]:
    """Have Ray predict shards.

    Args:
        attempt: Names this start of the job.

    Yields:
        Rows as `PLACED` says, in any order.
    """
    import ray.data

    config, context = spec.config, ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    line = spec.line()
    together = [to_lines(some) for some in read_together(shards)]
    flow = (
        ray.data.from_items(together, override_num_blocks=min(len(together), MOST_BLOCKS))
        .map_batches(
            read,
            fn_kwargs={"spec": line, "attempt": attempt},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=READER_CPUS,
        )
        .map_batches(
            Predicting,
            fn_constructor_args=(line, attempt),
            batch_size=config.images_at_once,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=config.workers),
            num_cpus=config.cpus_per_worker - PREDICTOR_CPUS,
            max_restarts=LIVES,
            max_task_retries=LIVES,
        )
    )
    yield from flow.iter_batches(batch_size=None, batch_format="pyarrow")


def read(batch: pa.Table, spec: str, attempt: str) -> Iterator[pa.Table]:
    """A task: read what shards list."""
    of = PredictSpec.from_json(spec, "the task")
    try:
        shards = [shard for lines in batch["item"].to_pylist() for shard in from_lines(lines, Shard)]
        found = contents(open_source(root_of(of.config.images)[0]), shards, of.columns, of.config.images_at_once)
        while some := list(islice(found, of.config.images_at_once)):
            yield pa.table(list(zip(*some, strict=True)), schema=IMAGES)
    except FlywheelError as error:
        leave(open_store(of.platform.store), of.folder, attempt, error)
        raise


def contents(source: Source, shards: Sequence[Shard], columns: tuple[str, str], most: int) -> Iterator[Image]:
    """Number of the shard, place in it, name and bytes of each image.

    Args:
        shards: As `read_together` gives them.
        most: Rows of Parquet that are in memory at a time.

    Raises:
        DataError: A file is not what was listed any more.
    """
    if shards[0].rows is None:
        with ThreadPoolExecutor(READS) as pool:
            for shard in shards:
                for start in range(0, shard.count, READS):
                    some = shard.files[start : start + READS]
                    whole = pool.map(lambda file: source.part(file, 0, file.size), some)
                    for at, (file, content) in enumerate(zip(some, whole, strict=True), start):
                        yield shard.number, at, file.key, content
        return
    from .parquet import read as rows_of

    ranges = [shard.rows for shard in shards if shard.rows]
    for place, at, name, cell in rows_of(source, shards[0].files[0], ranges, columns, most):
        yield shards[place].number, at, name, cell


class Predicting:
    """An actor: the package, after it has shown that it does here what its trainer saw."""

    def __init__(self, spec: str, attempt: str) -> None:
        of = PredictSpec.from_json(spec, "the actor's task")
        store = open_store(of.platform.store)
        try:
            with tempfile.TemporaryDirectory(prefix="package-") as folder:
                files = fetch_package(store, of.package, Path(folder))
                self._predictor = Predictor(files)  # one thread an image: numbers do not depend on how many there are
                golden.check(self._predictor, files)
        except FlywheelError as error:
            leave(store, of.folder, attempt, error)
            raise
        self._pool = ThreadPoolExecutor(of.config.cpus_per_worker)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(list(self._pool.map(self._row, batch.to_pylist())), schema=PLACED)

    def _row(self, image: dict[str, Any]) -> dict[str, Any]:
        return {name: image[name] for name in ("shard", "at", "path")} | row(self._predictor, image["content"])


def row(predictor: Predictor, content: bytes | None) -> dict[str, Any]:
    """What is seen in one image, or why nothing can be."""
    nothing: dict[str, Any] = {"boxes": [], "labels": [], "scores": []}
    sha256 = hashlib.sha256(content or b"").hexdigest()
    try:
        pixels = decode(content or b"")
        found = predictor.predict(pixels)
    except UserError as error:
        return {"sha256": sha256, "error": error.message, **nothing}
    names = predictor.config.names
    return {
        "sha256": sha256,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "boxes": found.boxes.tolist(),
        "labels": [names[kind] for kind in found.classes],
        "scores": found.scores.tolist(),
    }
