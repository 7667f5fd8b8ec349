"""What the stage has its job do, and what the job says while it works: records in the store."""

from typing import ClassVar

from ..runtime.artifacts import Checkpoint, DatasetVersion, Epoch, Lineage
from ..runtime.config import Train
from ..runtime.orders import Order
from ..runtime.records import Record


class TrainSpec(Order):
    """An order to train; its key is a hash of config, inputs and code.

    Args:
        parent: Weights to start from; none starts from random ones.
    """

    STAGE: ClassVar = "train"
    MODULE: ClassVar = "kfp_flywheel.components.train.job"
    PLACE: ClassVar = "training/"

    config: Train
    dataset: DatasetVersion
    parent: Checkpoint | None
    lineage: Lineage

    @property
    def checkpoints(self) -> str:
        return f"{self.folder}checkpoints/"


class Progress(Record):
    """One thing to tell whoever watches: an epoch, or a sentence."""

    epoch: Epoch | None = None
    note: str = ""
