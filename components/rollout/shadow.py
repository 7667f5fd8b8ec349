"""Questions to a canary before it has any traffic: labelled images of the holdout, and what users asked lately.

The stable is asked the same at the same time, so a difference is the canary's and not the day's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np

from ..recipes.detection.agreement import accuracy, agreement
from ..recipes.detection.log import pictures_of, read_window
from ..recipes.detection.predict import Detections
from ..runtime.artifacts import DatasetVersion, EvalReport, ModelPackage, Release, Sample
from ..runtime.blobs import get_blob
from ..runtime.errors import FlywheelError
from ..runtime.manifests import find
from ..runtime.ports import Store
from ..runtime.records import from_lines
from ..serving.client import infer
from ..statistics.sequential import loss
from .evidence import REPLAYS, Replayed


@dataclass(frozen=True)
class Question:
    """An encoded image, and its labels if it has any."""

    image: bytes
    sample: Sample | None


def replay(
    store: Store,
    endpoint: str,
    release: Release,
    champion: Release,
    limit: int,
    canary: str,
    stable: str,
    tick: Callable[[], None],
) -> Replayed:
    """Ask both versions until all is asked, or harm is shown.

    Args:
        limit: Labelled images at most, and recorded requests at most.
        canary, stable: The versions' own addresses; without the stable's nothing can be compared.
        tick: Is called before each question.
    """
    package, incumbent = (
        ModelPackage.from_json(store.get(one.package_uri), one.package_uri) for one in (release, champion)
    )
    asked = [0, 0]
    differences: list[float] = []
    agreed: list[float] = []
    for question in _questions(store, endpoint, release, champion, limit) if stable else ():
        tick()
        mine = _ask(canary, endpoint, question.image, package.names, package.names)
        theirs = _ask(stable, endpoint, question.image, incumbent.names, package.names)
        asked[question.sample is None] += 1
        if question.sample is not None:
            scores = [None if found is None else accuracy(found, question.sample) for found in (mine, theirs)]
            if mine is not None and theirs is not None and None in scores:
                continue  # nothing is labelled, and one of them sees nothing
            differences.append((scores[0] or 0.0) - (scores[1] or 0.0))
        else:
            differences.append(float(mine is not None) - float(theirs is not None))
            if mine is not None and theirs is not None and (both := agreement(mine, theirs)) is not None:
                agreed.append(both)
        if loss(np.array(differences))[-1] >= 1 / REPLAYS:
            break
    return Replayed(
        labelled=asked[0],
        recorded=asked[1],
        differences=tuple(differences),
        agreement=tuple(agreed),
        expected=find(store, release.report, EvalReport).agreement,
    )


def _questions(store: Store, endpoint: str, release: Release, champion: Release, limit: int) -> Iterator[Question]:
    """Labelled and recorded ones in turn, as far as there are some."""
    holdout = find(store, release.dataset, DatasetVersion).holdouts[0]
    samples = _spread(from_lines(get_blob(store, holdout.index), Sample), limit)
    window, _ = read_window(store, endpoint, f"v{champion.version}", limit) if limit else (None, [])
    labelled = (Question(get_blob(store, sample.image), sample) for sample in samples)
    recorded = (Question(content, None) for content in pictures_of(store, window.pictures if window else ()))
    return (one for one in chain.from_iterable(zip_longest(labelled, recorded)) if one is not None)


def _spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most so many, evenly over the list."""
    return [samples[at] for at in np.linspace(0, len(samples) - 1, min(limit, len(samples))).astype(int)]


def _ask(url: str, endpoint: str, image: bytes, names: Sequence[str], to: Sequence[str]) -> Detections | None:
    """An answer with the class ids of other names; classes that those lack are left out. None for a failure."""
    try:
        return infer(url, endpoint, image, shadow=True).renumbered(names, to)
    except FlywheelError:
        return None
