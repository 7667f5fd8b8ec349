"""What the stage hands to its job: a record in the store. What the job keeps is kept under names made of content."""

from ..runtime.artifacts import Blob, Lineage, ModelPackage, content_id
from ..runtime.config import Platform, Predict
from ..runtime.records import Record
from ..runtime.step import code_version
from .listing import Shard

MODULE = "kfp_flywheel.components.predict.job"
PLACE = "batches/"


class PredictSpec(Record):
    """All that the job needs to know.

    Args:
        key: Hash of listing, package and code.
        shards: The frozen listing, JSON lines of Shard.
    """

    key: str
    platform: Platform
    config: Predict
    package: ModelPackage
    release: str
    shards: Blob
    lineage: Lineage

    @property
    def name(self) -> str:
        """The job's name: a DNS label."""
        return f"predict-{self.key}"

    @property
    def folder(self) -> str:
        """Prefix, in the store, of what this job keeps."""
        return f"{PLACE}{self.key}/"

    @property
    def result_key(self) -> str:
        """Where the manifest is written, last of all."""
        return f"{self.folder}predictions.json"

    @property
    def columns(self) -> tuple[str, str]:
        return self.config.image_column, self.config.id_column

    @property
    def parts(self) -> str:
        """Prefix of all that this package predicted, for whatever listing."""
        return f"{PLACE}parts/{self.package.id}/"

    def part_key(self, shard: Shard) -> str:
        """Where the predictions of a shard are written, once: a hash of package, images and code."""
        return f"{self.parts}{content_id([shard.content(self.columns), code_version()])}.parquet"
