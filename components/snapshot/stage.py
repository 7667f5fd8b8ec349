"""Freeze a data version: its id is its content, its holdout never changes."""

from collections import Counter

from ..runtime.artifacts import CleanBatch, DatasetVersion, Holdout, Lineage, Sample, Split, content_id
from ..runtime.blobs import get_blob, put_blob
from ..runtime.config import Snapshot
from ..runtime.decisions import concluded
from ..runtime.errors import DataError
from ..runtime.ports import Store
from ..runtime.records import from_lines, to_lines
from ..runtime.step import step
from .split import ORDER, assign, divided


def run(
    clean: str,
    dataset: str,
    config: str,
    val_fraction: float,
    test_fraction: float,
    group_pattern: str,
    platform: str,
    run_id: str,
) -> str:
    """Freeze the CleanBatch at the path `clean` as a DatasetVersion at `dataset`; gives `new` or `decided`."""
    with step("snapshot", platform, run_id) as here:
        section = Snapshot.of(val_fraction=val_fraction, test_fraction=test_fraction, group_pattern=group_pattern)
        batch = CleanBatch.read(clean)
        made = here.reuse(
            DatasetVersion, section, (batch.id,), lambda: freeze(here.store, batch, section, here.lineage(batch.id))
        )
        made.write(dataset)
        here.sentence = describe(made, from_lines(get_blob(here.store, made.index), Sample))
        outcome = concluded(here.store, made.id, config)
        if outcome is not None:
            before = (
                f"{outcome.step} decided on it before, with this configuration: {outcome.decision}, {outcome.reason}"
            )
            here.sentence += f" {before}"
        return "decided" if outcome else "new"


def freeze(store: Store, batch: CleanBatch, config: Snapshot, lineage: Lineage) -> DatasetVersion:
    """Divide the samples, and write the version.

    Raises:
        DataError: There would be no training, validation or test image, or no training box.
    """
    found = from_lines(get_blob(store, batch.index), Sample)
    samples = assign(found, config)
    count: Counter[Split | None] = Counter(sample.split for sample in samples)
    missing = [split for split in ORDER if not count[split]]
    if missing:
        raise DataError(
            _lacking(missing, count, config),
            _remedy(missing, samples, sum(sample.split is not None for sample in found)),
        )
    if not any(sample.boxes for sample in samples if sample.split == "train"):
        raise DataError(
            f"none of the {count['train']} training images has a box.", "label them, or give them another split"
        )
    identity = content_id(
        ["dataset.v1", batch.names, sorted((s.image.sha256, s.split or "", s.boxes) for s in samples)]
    )
    holdout = [sample for sample in samples if sample.split == "test"]
    frozen = Holdout(dataset=identity, count=len(holdout), index=put_blob(store, to_lines(holdout), ".jsonl"))
    return DatasetVersion(
        id=identity,
        lineage=lineage,
        names=batch.names,
        counts={split: count[split] for split in ORDER},
        index=put_blob(store, to_lines(samples), ".jsonl"),
        holdouts=(frozen,),
    )


def _lacking(missing: list[Split], count: Counter[Split | None], config: Snapshot) -> str:
    have = ", ".join(f"{count[split]} {split}" for split in ORDER)
    shares = f"val_fraction is {config.val_fraction:g}, test_fraction is {config.test_fraction:g}"
    return f"the data version would have no {' and no '.join(missing)} images ({have}; {shares})."


def _remedy(missing: list[Split], samples: list[Sample], given: int) -> str:
    if given < len(samples):
        return "raise val_fraction or test_fraction, or give more images or groups"
    lines = f"name {' and '.join(missing)} in data.yaml"
    return f"{lines}, or delete train, val and test there: then all images are divided by a hash"


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
