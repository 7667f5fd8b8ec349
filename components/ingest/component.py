"""KFP contract of ingest."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def ingest(batch: dsl.Output[dsl.Dataset], source: str, platform: str = "", run_id: str = "") -> None:
    """Read a folder of images with YOLO labels into the store.

    Args:
        batch: Receives the RawBatch: what was read, by content.
        source: The data.yaml or its folder: a path, file:///path, s3://bucket/folder or gs://bucket/folder.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.
    """
    from kfp_flywheel.components.ingest.stage import run

    return run(batch.path, source, platform, run_id)
