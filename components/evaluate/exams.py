"""Both packages on the holdouts of a data version: on its own, and on all that it inherited together.

Together, because each generation adds a small one, and on few images nothing can be shown about any of them.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..recipes.detection.agreement import agreement
from ..recipes.detection.mistakes import above
from ..recipes.detection.predict import Detections
from ..runtime.artifacts import DatasetVersion, ModelPackage, Sample, Scores
from ..runtime.blobs import get_blob
from ..runtime.lines import say
from ..runtime.ports import Store
from ..runtime.records import from_lines
from .gate import Comparison
from .measure import Answers, ask, assess, compare


@dataclass(frozen=True)
class Exam:
    """What both packages are worth on one holdout.

    Args:
        dataset: The data version that the holdout was frozen with; of several, all, with commas.
        served: What the challenger would answer, with the class ids of the data.
        champion_scores: None if there is no champion, as the comparison.
        agreement: Of both as they are served, for each image that either sees something in.
    """

    dataset: str
    samples: tuple[Sample, ...]
    scores: Scores
    served: tuple[Detections, ...]
    champion_scores: Scores | None = None
    comparison: Comparison | None = None
    agreement: tuple[float, ...] = ()


def examine(
    store: Store, package: ModelPackage, champion: ModelPackage | None, dataset: DatasetVersion
) -> tuple[Exam, ...]:
    """Ask both packages about a data version's own holdout and, if it inherited any, about those; and compare them.

    Raises:
        PlatformError: A package does not do here what its trainer saw, or stored bytes are damaged.
    """
    sides = [side for side in (dataset.holdouts[:1], dataset.holdouts[1:]) if side]
    parts = [[s for holdout in side for s in from_lines(get_blob(store, holdout.index), Sample)] for side in sides]
    everything = [sample for part in parts for sample in part]
    with tempfile.TemporaryDirectory(prefix="flywheel-packages-") as folder:
        asked = ask(store, package, everything, Path(folder, "challenger"), "the challenger")
        others = ask(store, champion, everything, Path(folder, "champion"), "the champion") if champion else None
    if others:
        say("evaluate: compares the two by the bootstrap")
    exams, start = [], 0
    for side, samples in zip(sides, parts, strict=True):
        part = slice(start, start + len(samples))
        both = asked.about(part), others and others.about(part)
        name = ", ".join(holdout.dataset for holdout in side)
        exams.append(_exam(name, tuple(samples), *both, dataset.names))
        start = part.stop
    return tuple(exams)


def _exam(
    dataset: str, samples: tuple[Sample, ...], asked: Answers, others: Answers | None, names: tuple[str, ...]
) -> Exam:
    mine, found = assess(asked, samples, names)
    served = tuple(above(prediction, asked.conf) for prediction in found)
    if others is None:
        return Exam(dataset, samples, mine, served)
    theirs, seen = assess(others, samples, names)
    agreed = (agreement(one, above(other, others.conf)) for one, other in zip(served, seen, strict=True))
    return Exam(
        dataset,
        samples,
        mine,
        served,
        theirs,
        compare(found, seen, samples, names, others.names),
        tuple(value for value in agreed if value is not None),
    )
