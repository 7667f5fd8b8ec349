"""The predicting job: `python -m kfp_flywheel.components.predict.job SPEC_URI`, on any machine that reaches the store.

The predictions of a shard appear whole, under a name made of its images, the package and the code. So whoever runs the
job again goes on with what is missing, and nothing is there twice.
"""

import contextlib
import sys
import time
from collections.abc import Sequence

from ..runtime.blobs import get_blob
from ..runtime.errors import AlreadyExists, JobFailed
from ..runtime.lines import say
from ..runtime.orders import reason, work
from ..runtime.ports import Store
from ..runtime.raycluster import ray_up
from ..runtime.records import from_lines
from .flow import predicted
from .listing import Shard
from .parts import encode, gathered
from .spec import PredictSpec
from .summary import summed

SHARED_MB = 512
LINES = 100
"""Of progress, at most."""


def run(spec: PredictSpec, store: Store, attempt: str) -> None:
    """Predict the shards that nobody has predicted yet, then tell of all of them.

    Raises:
        DataError: The source changed after it was listed.
        PlatformError: The store is away, or the package does not do here what its trainer saw.
        JobFailed: Workers died more often than is to be expected of machines.
    """
    shards = from_lines(get_blob(store, spec.shards), Shard)
    there = set(store.list(spec.parts))
    missing = [shard for shard in shards if spec.part_key(shard) not in there]
    if len(missing) < len(shards):
        say(f"predict: {len(shards) - len(missing)} of {len(shards)} shards are there already")
    if missing:
        predict(spec, store, shards, missing, attempt)
    made = summed(spec, store, shards)
    with contextlib.suppress(AlreadyExists):  # another run of this very job was quicker
        store.put(spec.result_key, made.to_json())


def predict(spec: PredictSpec, store: Store, shards: Sequence[Shard], missing: Sequence[Shard], attempt: str) -> None:
    """Write the predictions of each missing shard as soon as Ray has given all of them."""
    config, started = spec.config, time.monotonic()
    total, images = len(shards), sum(shard.count for shard in shards)
    done = images - sum(shard.count for shard in missing)
    stride = max(1, total // LINES)
    with ray_up(config.workers * config.cpus_per_worker, shared_mb=SHARED_MB):
        from ray.exceptions import RayError  # not before Ray knows how to come up

        say(f"predict: Ray is up after {time.monotonic() - started:.1f} s")
        try:
            written = gathered(predicted(spec, missing, attempt), missing)
            for number, (shard, table) in enumerate(written, total - len(missing) + 1):
                with contextlib.suppress(AlreadyExists):
                    store.put(spec.part_key(shard), encode(table))
                done += shard.count
                if number % stride == 0 or number == total:
                    say(f"predict: {number} of {total} shards, {done} of {images} images")
        except RayError as error:
            print(error, file=sys.stderr)
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise reason(store, spec.folder, attempt) or JobFailed(
                f"Ray gave up: {lines[-1].strip()}", "read the log of the job; then run the same command again"
            ) from error


if __name__ == "__main__":
    work(PredictSpec, sys.argv[1], run)
