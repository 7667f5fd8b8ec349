"""The contract of predict."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def predict(
    chosen: dsl.Input[dsl.Artifact], predictions: dsl.Output[dsl.Dataset], page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics], images: str, image_column: str = "image", id_column: str = "path",
    shard_images: int = 256, images_at_once: int = 16, workers: int = 1, cpus_per_worker: int = 2,
    max_bad_fraction: float = 0.05, platform: str = "", run_id: str = "",
) -> None:  # fmt: skip
    """Predict every image of a folder, or of Parquet, by a job on Ray Data. Killed, it goes on when it is run again.

    Args:
        chosen: The model: a Resolution, for its champion, or a Release.
        predictions: Receives the Predictions: Parquet files, a row an image.
        page: Receives the page for a person.
        metrics: Receives how many images and detections there are, and how many cannot be read.
        images: Folder of images, or Parquet: a path or a URI.
        image_column: Parquet's column of image files' bytes.
        id_column: Parquet's column that names an image.
        shard_images: Images whose predictions are written as one object.
        images_at_once: Images that a worker is handed at a time.
        workers: Ray workers.
        cpus_per_worker: CPUs, and threads, of a worker.
        max_bad_fraction: Share of bad items above which the run stops, 0 to 1.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.
    """
    from kfp_flywheel.components.predict.stage import run

    return run(
        *(chosen.path, predictions.path, page.path, platform, run_id, metrics.log_metric),
        images=images, image_column=image_column, id_column=id_column, shard_images=shard_images,
        images_at_once=images_at_once, workers=workers, cpus_per_worker=cpus_per_worker,
        max_bad_fraction=max_bad_fraction,
    )  # fmt: skip
