"""Freeze a data version: its id is its content, its holdout never changes."""

from collections import Counter

from ..runtime.artifacts import (
    CleanBatch,
    DatasetVersion,
    Holdout,
    Lineage,
    Release,
    Resolution,
    Sample,
    Split,
    content_id,
)
from ..runtime.blobs import get_blob, put_blob
from ..runtime.config import Snapshot
from ..runtime.decisions import concluded
from ..runtime.errors import DataError, UserError
from ..runtime.manifests import find
from ..runtime.ports import Store
from ..runtime.records import from_lines, to_lines
from ..runtime.step import step
from .split import ORDER, assign, divided, ordered


def run(
    clean: str,
    champion: str,
    dataset: str,
    config: str,
    val_fraction: float,
    test_fraction: float,
    group_pattern: str,
    grow_from: str,
    platform: str,
    run_id: str,
) -> str:
    """Freeze the CleanBatch at the path `clean` as a DatasetVersion at `dataset`; gives `new` or `decided`.

    Args:
        champion: Path of a Resolution.
    """
    with step("snapshot", platform, run_id) as here:
        section = Snapshot.of(
            val_fraction=val_fraction, test_fraction=test_fraction, group_pattern=group_pattern, grow_from=grow_from
        )
        batch = CleanBatch.read(clean)
        parent = parent_of(section, Resolution.read(champion).champion, here.store)
        inputs = (batch.id, *([parent.id] if parent else []))
        made = here.reuse(
            DatasetVersion,
            section,
            inputs,
            lambda: freeze(here.store, batch, section, here.lineage(*inputs), parent),
        )
        made.write(dataset)
        here.sentence = describe(made, from_lines(get_blob(here.store, made.index), Sample))
        if parent:
            here.sentence += f" {grown(made, batch, parent)}"
        elif section.grow_from == "champion":
            here.sentence += " grow_from is champion, and there is none yet: it is of the new images alone."
        outcome = concluded(here.store, made.id, config)
        if outcome is not None:
            before = (
                f"{outcome.step} decided on it before, with this configuration: {outcome.decision}, {outcome.reason}"
            )
            here.sentence += f" {before}"
            here.ends = True
        return "decided" if outcome else "new"


def parent_of(config: Snapshot, champion: Release | None, store: Store) -> DatasetVersion | None:
    """The data version that the champion was trained on, if the new one is to grow from it.

    Raises:
        PlatformError: The store has no such version.
    """
    if config.grow_from != "champion" or champion is None:
        return None
    return find(store, champion.dataset, DatasetVersion)


def freeze(
    store: Store, batch: CleanBatch, config: Snapshot, lineage: Lineage, parent: DatasetVersion | None = None
) -> DatasetVersion:
    """Divide the samples, and write the version.

    Args:
        parent: The version to grow from. Its samples keep split and label, its holdouts stay behind the new one, which
            has test images of the batch alone: what an older model was judged on says nothing about new images.

    Returns:
        The new version; or the parent itself, if it has every image already.

    Raises:
        UserError: The parent has other classes.
        DataError: There would be no training, validation or test image, or no training box.
    """
    found = from_lines(get_blob(store, batch.index), Sample)
    if parent is None:
        old, added = [], found
    else:
        _same_names(batch, parent)
        old = from_lines(get_blob(store, parent.index), Sample)
        known = {sample.image.sha256 for sample in old}
        added = [sample for sample in found if sample.image.sha256 not in known]
        if not added:
            return parent
    new = assign(added, config, old)
    samples, exam = ordered([*old, *new]), [sample for sample in new if sample.split == "test"]
    count: Counter[Split | None] = Counter(sample.split for sample in samples)
    missing = [split for split in ORDER if not (count[split] if split != "test" else exam)]
    if missing:
        raise DataError(
            _lacking(missing, count, config, len(new) if parent else 0),
            _remedy(missing, added),
        )
    if not any(sample.boxes for sample in samples if sample.split == "train"):
        raise DataError(
            f"none of the {count['train']} training images has a box.", "label them, or give them another split"
        )
    inherited = parent.holdouts if parent else ()
    identity = content_id(
        [
            "dataset.v1",
            batch.names,
            sorted((s.image.sha256, s.split or "", s.boxes) for s in samples),
            # The same images, frozen at once, are another exam.
            *([[holdout.dataset for holdout in inherited]] if inherited else []),
        ]
    )
    frozen = Holdout(dataset=identity, count=len(exam), index=put_blob(store, to_lines(exam), ".jsonl"))
    return DatasetVersion(
        id=identity,
        lineage=lineage,
        names=batch.names,
        counts={split: count[split] for split in ORDER},
        index=put_blob(store, to_lines(samples), ".jsonl"),
        holdouts=(frozen, *inherited),
    )


def _same_names(batch: CleanBatch, parent: DatasetVersion) -> None:
    if batch.names != parent.names:
        raise UserError(
            f"grow_from is champion, whose data version {parent.id} has the classes {', '.join(parent.names)}; the new "
            f"images have {', '.join(batch.names)}.",
            "name the same classes in the same order in data.yaml, or give -p grow_from=nothing",
        )


def _lacking(missing: list[Split], count: Counter[Split | None], config: Snapshot, new: int) -> str:
    have = ", ".join(f"{count[split]} {split}" for split in ORDER)
    shares = f"val_fraction is {config.val_fraction:g}, test_fraction is {config.test_fraction:g}"
    if new:  # what it grows from has the rest
        return f"none of the {new} new images would be a test image: nothing new could be judged ({shares})."
    return f"the data version would have no {' and no '.join(missing)} images ({have}; {shares})."


def _remedy(missing: list[Split], found: list[Sample]) -> str:
    if any(sample.split is None for sample in found):
        return "raise val_fraction or test_fraction, or give more images or groups"
    lines = f"name {' and '.join(missing)} in data.yaml"
    return f"{lines}, or delete train, val and test there: then all images are divided by a hash"


def grown(made: DatasetVersion, batch: CleanBatch, parent: DatasetVersion) -> str:
    """One sentence about what was added to the parent."""
    new = sum(made.counts.values()) - sum(parent.counts.values())
    known = batch.count - new
    if not new:
        return f"It had all {known} images of the batch, which keep their splits and labels: nothing is new."
    kept = f" {known} were there before and keep their splits and labels." if known else ""
    return f"It grew from {parent.id} by {new} images, {made.holdouts[0].count} of which are its own holdout.{kept}"


def describe(made: DatasetVersion, samples: list[Sample]) -> str:
    """One sentence for a person, and a second for what is odd about the data."""
    boxes = {split: Counter(box[0] for s in samples if s.split == split for box in s.boxes) for split in ORDER}
    told = ", ".join(f"{made.counts[split]} {split} images with {boxes[split].total()} boxes" for split in ORDER)
    sentence = f"Data version {made.id}: {told}."
    for split in ("train", "test"):
        without = [name for number, name in enumerate(made.names) if not boxes[split][number]]
        if without:
            sentence += f" No {split} box of {len(without)} of {len(made.names)} classes: {', '.join(without[:5])}."
    odd = divided(samples)
    if odd:
        sentence += f" {len(odd)} groups were given to several splits, for example {odd[0]}."
    return sentence
