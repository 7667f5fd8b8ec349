"""What the stage has its job do: a record in the store. What the job keeps is kept under names made of content."""

from typing import ClassVar

from ..runtime.artifacts import Blob, Lineage, ModelPackage, content_id
from ..runtime.config import Predict
from ..runtime.orders import Order
from ..runtime.step import code_version
from .listing import Shard


class PredictSpec(Order):
    """An order to predict; its key is a hash of listing, package and code.

    Args:
        shards: The frozen listing, JSON lines of Shard.
    """

    STAGE: ClassVar = "predict"
    MODULE: ClassVar = "kfp_flywheel.components.predict.job"
    PLACE: ClassVar = "batches/"

    config: Predict
    package: ModelPackage
    release: str
    shards: Blob
    lineage: Lineage

    @property
    def columns(self) -> tuple[str, str]:
        return self.config.image_column, self.config.id_column

    @property
    def parts(self) -> str:
        """Prefix of all that this package predicted, for whatever listing."""
        return f"{self.PLACE}parts/{self.package.id}/"

    def part_key(self, shard: Shard) -> str:
        """Where the predictions of a shard are written, once: a hash of package, images and code."""
        return f"{self.parts}{content_id([shard.content(self.columns), code_version()])}.parquet"
