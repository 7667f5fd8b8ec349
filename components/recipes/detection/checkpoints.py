"""Training state in the store: written once, its manifest last, found again by whoever continues."""

import io
import math
import time
from collections.abc import Callable
from typing import Any

from ...runtime.artifacts import Blob, Epoch
from ...runtime.blobs import get_blob
from ...runtime.errors import AlreadyExists, Corrupt
from ...runtime.manifests import load
from ...runtime.ports import Store
from ...runtime.records import Record

BUDGET = 2**30
LONGEST_S = 600.0

State = dict[str, Any]
"""`torch.save`d: tensors, numbers, strings, lists and dicts of them; nothing else is loaded again."""


class Saved(Record):
    """A complete checkpoint: `epoch` epochs are done, and went as `curve` says."""

    epoch: int
    blob: Blob
    curve: tuple[Epoch, ...]


def saved(store: Store, prefix: str) -> list[Saved]:
    """Complete checkpoints of a job, oldest first.

    Args:
        prefix: Of the job's checkpoints in the store, with a `/` at its end.
    """
    keys = [key for key in store.list(prefix) if key.endswith(".json")]
    return [load(store, key, Saved) for key in keys]


class Checkpoints:
    """The checkpoints of one job.

    A store only grows. So not every epoch is kept where that would take more than a GiB, but one each ten minutes is.

    Args:
        store: Where they are.
        prefix: Their prefix, with a `/` at its end, the same for whoever runs this job again.
        epochs: How many there will be.
        say: Is told what a person should know.
    """

    def __init__(self, store: Store, prefix: str, epochs: int, say: Callable[[str], None]) -> None:
        self._store, self._prefix, self._epochs, self._say = store, prefix, epochs, say
        self._every = 1
        self._last = time.monotonic()

    def newest(self) -> tuple[State, tuple[Epoch, ...]] | None:
        """The newest state whose bytes are whole, and the curve up to it."""
        import torch

        for found in reversed(saved(self._store, self._prefix)):
            try:
                content = get_blob(self._store, found.blob)
            except Corrupt as error:
                self._say(f"the checkpoint of epoch {found.epoch} is damaged and is passed over: {error}")
                continue
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), found.curve
        return None

    def is_due(self, epoch: int) -> bool:
        """Whether the state after this epoch, counted from 1, is to be kept."""
        return epoch % self._every == 0 or epoch in (1, self._epochs) or time.monotonic() - self._last > LONGEST_S

    def save(self, epoch: int, state: State, curve: tuple[Epoch, ...]) -> None:
        """Keep the state after an epoch, counted from 1.

        Raises:
            PlatformError: The store cannot be written.
        """
        import hashlib

        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        self._every = max(1, math.ceil(len(content) * self._epochs / BUDGET))
        uri = self._store.put(f"{self._prefix}{epoch:05d}-{digest[:16]}.pt", content)
        manifest = Saved(epoch=epoch, blob=Blob(uri=uri, sha256=digest, size=len(content)), curve=curve)
        try:
            self._store.put(f"{self._prefix}{epoch:05d}.json", manifest.line().encode())
        except AlreadyExists:
            self._say(f"another run of this job has kept epoch {epoch} already")
        self._last = time.monotonic()
