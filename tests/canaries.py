"""Two releases that may follow one another at an endpoint: real small packages, with the data and report that rollout
looks at."""

import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from kfp_flywheel.components.recipes.detection.evaluate import corners  # noqa: F401
from kfp_flywheel.components.recipes.detection.predict import decode
from kfp_flywheel.components.rollout.canary import Means
from kfp_flywheel.components.rollout.diary import Ended
from kfp_flywheel.components.rollout.shadow import replay
from kfp_flywheel.components.rollout.stage import Rolling, golden_asker
from kfp_flywheel.components.runtime.artifacts import (
    Box,
    DatasetVersion,
    EvalReport,
    Holdout,
    ModelPackage,
    Release,
    Sample,
    Scores,
    content_id,
)
from kfp_flywheel.components.runtime.blobs import put_blob
from kfp_flywheel.components.runtime.config import Rollout
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.ports import Store
from kfp_flywheel.components.runtime.records import to_lines
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.components.serving.client import answered_by

from tests.tiny import LINEAGE, NAMES, tiny_images, tiny_package

SCORES = Scores(map50=0.9, map=0.5, class_map50={"a": 0.9, "b": 0.9}, latency_ms=1.0, size_mb=0.1)
TRUTH = ((0.25, 0.25, 0.3, 0.3), (0.7, 0.4, 0.2, 0.4), (0.5, 0.8, 0.5, 0.2))
"""The boxes that the tiny model always sees, as fractions of its square input."""


def tiny_dataset(store: Store, count: int = 40) -> DatasetVersion:
    """A holdout whose images have no boxes: the tiny model's F1 there is 0 or unknown, whatever its bias."""
    return holdout(store, content_id(["tiny", count]), "tiny", ((image, ()) for image in tiny_images(count)))


def holdout(
    store: Store, id: str, name: str, labelled: Iterable[tuple[bytes, tuple[Box, ...]]], names: tuple[str, ...] = NAMES
) -> DatasetVersion:
    """A data version that is nothing but a holdout: encoded images and their boxes."""
    samples = []
    for number, (image, boxes) in enumerate(labelled):
        height, width = decode(image).shape[:2]
        samples.append(
            Sample(
                path=f"{number}.png",
                image=put_blob(store, image, ".png"),
                width=width,
                height=height,
                boxes=boxes,
                split="test",
                group=str(number),
            )
        )
    index = put_blob(store, to_lines(samples), ".jsonl")
    made = DatasetVersion(
        id=id,
        lineage=LINEAGE,
        names=names,
        counts={"train": 0, "val": 0, "test": len(samples)},
        index=index,
        holdouts=(Holdout(dataset=name, count=len(samples), index=index),),
    )
    keep(store, made)
    return made


def release_of(
    store: Store, version: str, package: ModelPackage, model: str = "detector", dataset: DatasetVersion | None = None
) -> Release:
    """A release of a package, with a report in the store."""
    dataset = dataset or tiny_dataset(store)
    report = EvalReport(
        id=content_id(["report", package.id, dataset.id]),
        lineage=LINEAGE,
        decision="pass",
        reason="for a test",
        package=package.id,
        champion=None,
        dataset=dataset.id,
        images=40,
        challenger_scores=SCORES,
        champion_scores=None,
        checks=(),
        page=put_blob(store, b"<p>", ".html"),
    )
    keep(store, report)
    made = Release(
        id=content_id([model, version, package.id, dataset.id]),
        lineage=LINEAGE,
        model=model,
        version=version,
        package=package.id,
        package_uri=keep(store, package),
        dataset=dataset.id,
        report=report.id,
    )
    keep(store, made)
    return made


def tiny_pair(store: Store) -> tuple[Release, Release]:
    """Champion and challenger, equally good: surer by a hair, and so another package."""
    return release_of(store, "1", tiny_package(store)), release_of(store, "2", tiny_package(store, bias=1.001))


def roll(
    world: World,
    new: Release,
    old: Release | None,
    run: str,
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.time,
    **settings: object,
) -> Ended:
    """Roll a release out as the stage does, but for MLflow."""
    chosen = Rollout.of(**settings)
    with tempfile.TemporaryDirectory() as folder:
        means = Means(
            store=world.store,
            serving=world.serving,
            telemetry=lambda: world.telemetry,
            ask=golden_asker(world.store, new, chosen.endpoint, Path(folder)),
            replay=partial(replay, world.store, chosen.endpoint, new, old or new, chosen.replays),
            answered_by=lambda: answered_by(world.serving.url(chosen.endpoint), chosen.endpoint),
            tell=tell,
            clock=clock,
        )
        return Rolling(means, new, old, chosen, run, lambda release: None).roll()
