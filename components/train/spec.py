"""What the stage hands to its job, and what the job says while it works: records in the store."""

from ..runtime.artifacts import Checkpoint, DatasetVersion, Epoch, Lineage
from ..runtime.config import Platform, Train
from ..runtime.records import Record

MODULE = "kfp_flywheel.components.train.job"


class TrainSpec(Record):
    """All that the job needs to know.

    Args:
        key: Hash of config, inputs and code. What the job keeps is kept under it, so whoever runs it again continues.
        parent: Weights to start from; none starts from random ones.
    """

    key: str
    platform: Platform
    config: Train
    dataset: DatasetVersion
    parent: Checkpoint | None
    lineage: Lineage

    @property
    def name(self) -> str:
        """The job's name: a DNS label."""
        return f"train-{self.key}"

    @property
    def folder(self) -> str:
        """Prefix, in the store, of all that the job keeps."""
        return f"training/{self.key}/"

    @property
    def package_key(self) -> str:
        """Where the manifest of the package is written, last of all."""
        return f"{self.folder}package.json"

    @property
    def checkpoints(self) -> str:
        return f"{self.folder}checkpoints/"


class Progress(Record):
    """One thing to tell whoever watches: an epoch, or a sentence."""

    epoch: Epoch | None = None
    note: str = ""
