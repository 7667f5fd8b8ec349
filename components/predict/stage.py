"""Predict all images of a source by a job on Ray Data: each once, whatever is killed on the way."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..runtime.artifacts import Lineage, ModelPackage, Predictions, Release, Resolution, content_id
from ..runtime.blobs import get_blob, put_blob
from ..runtime.config import Platform, Predict
from ..runtime.errors import DataError, PlatformError, UserError
from ..runtime.folder import SCHEMES, local_path
from ..runtime.lines import say
from ..runtime.manifests import load
from ..runtime.orders import have_done
from ..runtime.ports import Jobs, Store
from ..runtime.raycluster import fits
from ..runtime.records import to_lines
from ..runtime.shown import Log, nothing
from ..runtime.step import code_version, step
from .listing import Shard, freeze
from .spec import PredictSpec


def run(
    chosen: str, predictions: str, page: str, platform: str, run_id: str, log: Log = nothing, **parameters: object
) -> None:
    """Predict, unless the same images, package and code have given predictions before.

    Args:
        chosen: Path of a Resolution, for its champion, or of a Release.
        predictions: Path that receives the Predictions.
        page: Path that receives the page.
        log: Is given the numbers.
        parameters: Fields of config.Predict.
    """
    with step("predict", platform, run_id) as here:
        config = settled(Predict.of(**parameters), here.world.platform)
        release = release_of(Path(chosen))
        package = ModelPackage.from_json(here.store.get(release.package_uri), release.package_uri)
        if package.family != "detection":
            raise PlatformError(f"package {package.id} is of the family {package.family!r}; only 'detection' is known.")
        shards, images = freeze(config)
        say(f"predict: {images} images in {len(shards)} shards are listed in {config.images}")
        listed = content_id([shard.content((config.image_column, config.id_column)) for shard in shards])

        def build() -> Predictions:
            lineage = here.lineage(release.id, package.id)
            made = predict(here.store, here.world.jobs, here.world.platform, config, package, release, shards, lineage)
            show(here.store, made, Path(page))  # before the judgement: a person wants to see what cannot be read
            judge(made, config)
            return made

        made = here.reuse(Predictions, config, (listed, package.id), build)
        if here.outcome == "reused":
            show(here.store, made, Path(page))
        made.write(predictions)
        detections = sum(made.found.values())
        for name, value in (("images", made.count), ("unreadable", made.bad), ("detections", detections)):
            log(name, value)
        unread = f", {made.bad} of which cannot be read" if made.bad else ""
        here.sentence = (
            f"{made.count} images{unread}: {detections} detections by {release.model} version {release.version}; "
            f"{here.store.root}/artifacts/{made.id}.json lists the Parquet files."
        )


def settled(config: Predict, platform: Platform) -> Predict:
    """Refuse what cannot work, before anything is read; a path is made one that means the same everywhere here.

    Raises:
        UserError: Names the value and the limit.
    """
    here, remote = not platform.jobs_namespace, config.images.startswith(SCHEMES)
    if here:
        fits(config.workers, config.cpus_per_worker)
    elif not remote:
        raise UserError(
            f"images is {config.images}, a place of this machine, and workers on a cluster read s3:// and gs:// only.",
            "copy the images to a bucket and name that",
        )
    return config if remote else config.but(images=str(local_path(config.images, "images").absolute()))


def release_of(chosen: Path) -> Release:
    """The release that is to predict.

    Raises:
        UserError: It is a champion's, and the endpoint has none.
    """
    content = chosen.read_bytes()
    if json.loads(content).get("kind") == "release.v1":
        return Release.from_json(content, str(chosen))
    resolved = Resolution.from_json(content, str(chosen))
    if resolved.champion is None:
        raise UserError(
            f"endpoint {resolved.endpoint} has no champion that could predict.",
            "give -p model_version=NUMBER, or run the flywheel first",
        )
    return resolved.champion


def predict(
    store: Store,
    jobs: Jobs,
    platform: Platform,
    config: Predict,
    package: ModelPackage,
    release: Release,
    shards: Sequence[Shard],
    lineage: Lineage,
) -> Predictions:
    """Have a job predict, and read the manifest that it wrote last.

    Raises:
        UserError: What the job found to be the user's to mend.
        JobFailed: With the reason.
    """
    columns = (config.image_column, config.id_column)
    inputs = [package.id, [shard.content(columns) for shard in shards], code_version()]
    spec = PredictSpec(
        key=content_id(inputs),
        platform=platform,
        config=config,
        package=package,
        release=release.id,
        shards=put_blob(store, to_lines(shards), ".jsonl"),
        lineage=lineage,
    )
    have_done(spec, store, jobs, config.workers, config.cpus_per_worker)
    return load(store, spec.result_key, Predictions)


def judge(made: Predictions, config: Predict) -> None:
    """Stop a run of which too much cannot be read. What was predicted stays, and is not predicted again.

    Raises:
        DataError: With the number and the limit.
    """
    share = made.bad / made.count
    if share > config.max_bad_fraction:
        raise DataError(
            f"{made.bad} of {made.count} images cannot be read ({share:.1%}), and max_bad_fraction is "
            f"{config.max_bad_fraction:.1%}.",
            "look at the page of predict, mend the files or raise max_bad_fraction",
        )


def show(store: Store, made: Predictions, page: Path) -> None:
    """Write the page where KFP expects it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_bytes(get_blob(store, made.page))
