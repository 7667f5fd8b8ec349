"""Train a detector by a job on Ray, and give the package that is judged and served."""

from ..recipes.detection import architectures
from ..runtime.artifacts import Checkpoint, DatasetVersion, Lineage, ModelPackage, Release, Resolution, content_id
from ..runtime.config import Platform, Train
from ..runtime.errors import DataError, UserError
from ..runtime.lines import say
from ..runtime.manifests import load
from ..runtime.orders import have_done
from ..runtime.ports import Jobs, Store
from ..runtime.raycluster import fits
from ..runtime.shown import Log, mlflow_run, nothing, write_links
from ..runtime.step import code_version, step
from .spec import TrainSpec


def run(
    dataset: str, champion: str, package: str, platform: str, run_id: str, links: str = "", log: Log = nothing,
    **parameters: object,
) -> None:  # fmt: skip
    """Train, unless the same data, configuration and code have given a package before.

    Args:
        dataset: Path of a DatasetVersion.
        champion: Path of a Resolution.
        package: Receives the path of the ModelPackage.
        links: Path of a Markdown artifact, or empty.
        log: Is given the numbers of the training.
        parameters: Fields of config.Train.
    """
    with step("train", platform, run_id) as here:
        config = Train.of(**parameters)
        version = DatasetVersion.read(dataset)
        check(config, version, here.world.platform)
        parent = parent_of(config, version, Resolution.read(champion).champion, here.store)
        inputs = (version.id, parent.checkpoint.digest if parent else "scratch")
        lineage = here.lineage(version.id, *([parent.id] if parent else []))
        made = here.reuse(
            ModelPackage,
            config,
            inputs,
            lambda: train(
                here.store,
                here.world.jobs,
                here.world.platform,
                config,
                version,
                parent.checkpoint if parent else None,
                lineage,
            ),
        )
        made.write(package)
        best = max(epoch.metrics.get("map50", 0.0) for epoch in made.curve)
        log("best_validation_map50", best)
        log("epochs", len(made.curve))
        log("seconds", sum(epoch.seconds for epoch in made.curve))
        run_page = mlflow_run(here.world.platform.tracking, made.tracking_run)
        write_links(links, {"Run in MLflow": run_page, "Package": f"artifacts/{made.id}.json"})
        here.sentence = (
            f"{config.architecture} trained for {len(made.curve)} epochs on {version.counts['train']} images in "
            f"{sum(epoch.seconds for epoch in made.curve):.0f} s; best validation mAP50 {best:.3f}."
        )


def check(config: Train, dataset: DatasetVersion, platform: Platform) -> None:
    """Refuse what cannot work, before a job is started.

    Raises:
        UserError: Names the value and the limit.
    """
    counts = {split: dataset.counts.get(split, 0) for split in ("train", "val", "test")}
    for split, limit in (("train", config.workers), ("val", config.workers), ("test", 1)):
        if counts[split] < limit:
            raise DataError(
                f"the data set has {counts[split]} {split} images, and {limit} at least are needed.",
                "add images, or change val_fraction and test_fraction",
            )
    if config.batch % config.workers:
        raise UserError(
            f"batch is {config.batch}: it cannot be divided evenly over {config.workers} workers.",
            f"try -p batch={max(config.batch // config.workers, 1) * config.workers}",
        )
    if config.gpus_per_worker > 1:
        raise UserError(
            f"gpus_per_worker is {config.gpus_per_worker}: a worker uses one GPU.",
            f"try -p gpus_per_worker=1 -p workers={config.workers * config.gpus_per_worker}",
        )
    if not platform.jobs_namespace:
        if architectures.can_look():
            architectures.find(config.architecture)
        fits(config.workers, config.cpus_per_worker)


def parent_of(config: Train, dataset: DatasetVersion, champion: Release | None, store: Store) -> ModelPackage | None:
    """The package whose weights are to be trained on; without a champion, the first training starts from scratch.

    Raises:
        UserError: It knows other classes than the data set.
    """
    if config.start_from != "champion":
        return None
    if champion is None:
        say("train: start_from is champion, and there is none yet: this first one starts from scratch")
        return None
    package = ModelPackage.from_json(store.get(champion.package_uri), champion.package_uri)
    if package.names != dataset.names:
        raise UserError(
            f"start_from is champion, whose {len(package.names)} classes ({_some(package.names)}) are not the data "
            f"set's {len(dataset.names)} ({_some(dataset.names)}).",
            "give -p start_from=scratch",
        )
    return package


def train(
    store: Store,
    jobs: Jobs,
    platform: Platform,
    config: Train,
    dataset: DatasetVersion,
    parent: Checkpoint | None,
    lineage: Lineage,
) -> ModelPackage:
    """Have a job train, and read the package that it wrote last.

    The job's name and the place of its checkpoints are a hash of config, inputs and code: whoever calls this again, in
    another run too, continues what was killed.

    Raises:
        UserError: What the job found to be the user's to mend.
        JobFailed: With the reason.
    """
    inputs = [config.plain(), dataset.id, parent.digest if parent else None, code_version()]
    spec = TrainSpec(
        key=content_id(inputs), platform=platform, config=config, dataset=dataset, parent=parent, lineage=lineage
    )
    have_done(spec, store, jobs, config.workers, config.cpus_per_worker, config.gpus_per_worker)
    return load(store, spec.result_key, ModelPackage)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
