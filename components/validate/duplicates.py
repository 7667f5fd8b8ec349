"""One copy of each image, however often it was found: what is learned must not be asked in the exam."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..runtime.artifacts import BadItem, Sample

RANK = {"test": 0, "val": 1, "train": 2, None: 3}


@dataclass(frozen=True)
class Decoded:
    """A sample, and the hash of its decoded pixels."""

    sample: Sample
    pixels: str


def single_out(decoded: Iterable[Decoded]) -> tuple[list[Sample], list[BadItem]]:
    """Keep one of each set of images with the same pixels, in whatever format they are.

    The copy in the test split is kept, then that in val, in train, and one without split last: the holdout stays as it
    was given, and what leaks into training goes. Within a split the first path is kept.

    Returns:
        The samples that stay, sorted by path, and the copies with the reason: `leak` across given splits, else
        `duplicate`.
    """
    kept: dict[str, Sample] = {}
    copies: list[BadItem] = []
    for one in sorted(decoded, key=lambda one: (RANK[one.sample.split], one.sample.path)):
        first = kept.setdefault(one.pixels, one.sample)
        if first is not one.sample:
            copies.append(_copy(one.sample, first))
    return sorted(kept.values(), key=lambda sample: sample.path), copies


def _copy(copy: Sample, first: Sample) -> BadItem:
    where = f"the same pixels as {first.path}"
    leak = copy.split is not None and copy.split != first.split
    detail = f"it is in {copy.split} and has {where} in {first.split}" if leak else f"it has {where}"
    if copy.boxes != first.boxes:
        detail += ", with other labels"
    return BadItem(
        path=copy.path, image=copy.image, reason="leak" if leak else "duplicate", detail=f"{detail}, which is kept"
    )
