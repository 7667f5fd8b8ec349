"""KFP contract of train."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def train(
    dataset: dsl.Input[dsl.Dataset],
    champion: dsl.Input[dsl.Artifact],
    package: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    links: dsl.Output[dsl.Markdown],
    architecture: str = "yolo11n",
    image_size: int = 640,
    epochs: int = 50,
    batch: int = 16,
    learning_rate: float = 2e-3,
    class_gain: float = 0.5,
    mosaic: float = 1.0,
    flip: float = 0.5,
    scale: float = 0.5,
    workers: int = 1,
    cpus_per_worker: int = 2,
    gpus_per_worker: int = 0,
    seed: int = 0,
    start_from: str = "scratch",
    platform: str = "",
    run_id: str = "",
) -> None:
    """Train a detector by Ray Train, and package it. Killed, it continues from its newest checkpoint when run again.

    Args:
        dataset: The DatasetVersion to train on.
        champion: The Resolution that names the champion, whose checkpoint may be trained on.
        package: Receives the ModelPackage.
        metrics: Receives the best validation mAP50, epochs and seconds.
        links: Receives where the run is in MLflow, and the name of its job.
        architecture: narrow, or the name of an ultralytics architecture.
        image_size: Side of the square input, in pixels.
        epochs: Passes over the training images.
        batch: Images a step, over all workers.
        learning_rate: AdamW's initial learning rate.
        class_gain: Weight of the classification loss.
        mosaic: Probability of mosaic augmentation.
        flip: Probability of a horizontal flip.
        scale: Range of random scaling.
        workers: Ray workers.
        cpus_per_worker: CPUs, and threads, of a worker.
        gpus_per_worker: GPUs of a worker: 0 or 1.
        seed: Seed of initial weights and of the order of images.
        start_from: scratch, or champion: its checkpoint.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.
    """
    from kfp_flywheel.components.train.stage import run

    return run(
        *(dataset.path, champion.path, package.path, platform, run_id, links.path, metrics.log_metric),
        architecture=architecture,
        image_size=image_size,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        class_gain=class_gain,
        mosaic=mosaic,
        flip=flip,
        scale=scale,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        seed=seed,
        start_from=start_from,
    )
