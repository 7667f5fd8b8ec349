"""Predictions for every image of a source, by the champion of an endpoint or a registered version."""

from kfp import dsl

from ..components.notify.component import notify
from ..components.predict.component import predict
from ..components.recall.component import recall
from ..components.resolve.component import resolve
from ..components.runtime import config
from .describe import described


@dsl.pipeline(name="batch-predict")
@described
def batch_predict(
    images: str,
    image_column: str = "image",
    id_column: str = "path",
    shard_images: int = 256,
    images_at_once: int = 16,
    workers: int = 1,
    cpus_per_worker: int = 2,
    max_bad_fraction: float = 0.05,
    model_version: str = "",
    model: str = "detector",
    endpoint: str = "detector",
    platform: str = "",
) -> None:
    """Predict every image of a folder, or of Parquet, each once; killed, it goes on where it was."""
    given = dict(locals())
    common = {"platform": platform, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    settings = {name: given[name] for name in config.Predict.__struct_fields__} | common
    told = notify(pipeline="batch_predict", steps="resolve recall predict", endpoint=endpoint, **common)
    with dsl.ExitHandler(told.set_caching_options(False), name="steps"):
        # kfp.local knows no OneOf of artifacts, so each branch has a predict of its own.
        with dsl.If(model_version == "", name="champion"):
            resolved = resolve(parameters="", endpoint=endpoint, **common).set_caching_options(False)
            predict(chosen=resolved.outputs["champion"], **settings).set_caching_options(False)
        with dsl.Else(name="version"):
            recalled = recall(model=model, version=model_version, **common).set_caching_options(False)
            predict(chosen=recalled.outputs["release"], **settings).set_caching_options(False)
