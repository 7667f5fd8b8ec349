"""Which sample is learned from and which is kept for the exam: a function of the sample's group alone."""

import hashlib
import re
from collections.abc import Iterable

from ..runtime.artifacts import Sample, Split
from ..runtime.config import Snapshot

ORDER: tuple[Split, ...] = ("train", "val", "test")


def position(group: str) -> float:
    """A number in [0, 1) that depends on the group's name alone: 64 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def drawn(group: str, config: Snapshot) -> Split:
    """The split of a group without given members. The holdout's share does not depend on the validation share."""
    where = position(group)
    if where < config.test_fraction:
        return "test"
    return "val" if where < config.test_fraction + config.val_fraction else "train"


def group_of(sample: Sample, pattern: re.Pattern[str] | None) -> str:
    """What the pattern's first group finds in the path; else the image itself: a renamed copy stays where it was."""
    found = pattern.search(sample.path) if pattern else None
    return (found[1] if found else None) or sample.image.sha256


def assign(samples: Iterable[Sample], config: Snapshot, settled: Iterable[Sample] = ()) -> list[Sample]:
    """Give each sample its group and its split, in any order of the samples the same.

    Given splits are kept. Other members of a group that has one follow it, for a scene that is half learned cannot be
    asked in the exam; if a group was given to several splits, they follow the first of train, val, test, where they do
    the least harm. Groups without a given split are drawn by the hash of their name: adding samples moves no other.

    Args:
        settled: Older samples, which have their splits for good: a group of theirs is followed before any other.

    Returns:
        The samples sorted by path.
    """
    pattern = re.compile(config.group_pattern) if config.group_pattern else None
    grouped = [sample.but(group=group_of(sample, pattern)) for sample in samples]
    before, given = _splits(settled), _splits(grouped)
    done = []
    for sample in grouped:
        split = sample.split
        if split is None:
            members = before.get(sample.group) or given.get(sample.group, set())
            split = next((one for one in ORDER if one in members), None) or drawn(sample.group, config)
        done.append(sample.but(split=split))
    return ordered(done)


def ordered(samples: Iterable[Sample]) -> list[Sample]:
    """The samples sorted by path."""
    return sorted(samples, key=lambda sample: (sample.path, sample.image.sha256))


def _splits(samples: Iterable[Sample]) -> dict[str, set[Split]]:
    """The splits that each group has members in."""
    found: dict[str, set[Split]] = {}
    for sample in samples:
        if sample.split is not None:
            found.setdefault(sample.group, set()).add(sample.split)
    return found


def divided(samples: Iterable[Sample]) -> list[str]:
    """Groups that lie in more than one split: only given splits can do that."""
    return sorted(group for group, splits in _splits(samples).items() if len(splits) > 1)
