"""`python -m tests.bench.drift`: how often the monitor rings without a reason, what it finds, and whether that hurts.

The tables of the monitor's README are printed as Markdown.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from kfp_flywheel.components.recipes.detection import harm
from kfp_flywheel.components.recipes.detection.drift import compare
from kfp_flywheel.components.recipes.detection.predict import Predictor

from . import judging
from .figures import Figure, median, publish
from .judging import (
    ALPHA,
    CONTENT,
    DROPS,
    FEWER,
    LARGE,
    POOL,
    REFERENCES,
    SMALL,
    TWELVE,
    WINDOW,
    WINDOWS,
    Job,
    Judge,
    Judged,
    rung,
)
from .local import seconds
from .scenes import Scene
from .traffic import detector, labelled

SEED = (
    f"{judging.CLEAN} (clean windows), {REFERENCES[0]} to {REFERENCES[-1]} (references), {judging.POOLS[0]} to "
    f"{judging.POOLS[-1]} (changes), {judging.OURS} (our own), 0 and 1 (draws)"
)
DROP = 0.05
BY_CONFIDENCE = 0.04
"""A simpler rule beside ours: mean confidence down by 4 %, relative, in two windows running."""
DRAWN, SMALL_REFERENCES, CLEAN_PAIRS = 100, 20, 60


def false_alarms(judge: Judge) -> list[Figure]:
    """Disjoint clean windows against each reference; half of them against each of some small ones."""

    def share(seed: int, first: int, images: int, windows: int) -> float:
        places = [range(WINDOW * at, WINDOW * (at + 1)) for at in range(windows)]
        return 100 * rung(judge(Job(seed, (first, first + images), (("clean", place),)) for place in places))

    large = [share(seed, 0, LARGE, WINDOWS) for seed in REFERENCES]
    places = [(REFERENCES[at % len(REFERENCES)], SMALL * (at // len(REFERENCES))) for at in range(SMALL_REFERENCES)]
    small = [share(seed, first, SMALL, WINDOWS // 2) for seed, first in places]
    print(f"\nFalse alarms in %: references of {LARGE} images {large}, of {SMALL} images {small}")
    return [
        Figure(
            f"false alarms, worst of {len(found)} references of {images}", max(found), "%", "<=", 2, "", tuple(found)
        )
        for images, found in ((LARGE, large), (SMALL, small))
    ]


def power(judge: Judge) -> list[Figure]:
    """Windows of 50 that are all changed, and windows of 200 of which 30 % are."""
    rng = np.random.default_rng(0)

    def judged(name: str, changed: int, clean: int) -> list[Judged]:
        jobs = []
        for at in range(DRAWN):
            drawn = rng.permutation(POOL)[:changed].tolist()
            others = (("clean", range(clean * at, clean * (at + 1))),) if clean else ()
            jobs.append(Job(REFERENCES[at % len(REFERENCES)], (0, LARGE), ((name, drawn), *others)))
        return judge(jobs)

    print("\n| Change | all of 50, severity 2 | 30 % of 200, severity 3 | rings most often |\n|---|---|---|---|")
    found: dict[str, tuple[float, float]] = {}
    for name in (*TWELVE, *CONTENT):
        small, large = (name, name) if name in CONTENT else (f"{name} 2", f"{name} 3")
        first, second = judged(small, 50, 0), judged(large, 60, 140)
        found[name] = rung(first), rung(second)
        print(f"| {name} | {found[name][0]:.2f} | {found[name][1]:.2f} | {_loudest(first)} |")
    content = [found[name][0] for name in CONTENT]
    every, some = (sum(found[name][at] >= least for name in TWELVE) for at, least in ((0, 0.95), (1, 0.8)))
    return [
        Figure("of 12 corruptions (severity 2), in ≥ 95 % of windows of 50", every, "", ">=", 10),
        Figure("of 3 changes of content, least power at 50", min(content), "", ">=", 0.95, "", tuple(content)),
        Figure("of 12 corruptions (severity 3) of 30 %, in ≥ 80 % of windows of 200", some, "", ">=", 9),
    ]


def _loudest(judged: Sequence[Judged]) -> str:
    names = sorted({name for seen in judged for name in seen.rung})
    return ", ".join(sorted(names, key=lambda name: -sum(name in seen.rung for seen in judged))[:3])


class Row(NamedTuple):
    """A change: its true loss of mAP50, and pairs of windows in a row of it."""

    name: str
    loss: float
    pairs: list[tuple[Judged, Judged]]

    def asked(self, drop: float) -> list[bool]:
        """Whether each pair asks for retraining."""
        return [all(seen.rung and seen.hurts[DROPS.index(drop)] for seen in pair) for pair in self.pairs]

    def by_confidence(self) -> list[bool]:
        return [all(seen.rung and seen.confidence_drop >= BY_CONFIDENCE for seen in pair) for pair in self.pairs]


def _rows(judge: Judge, names: Iterable[str], images: int = LARGE) -> list[Row]:
    """A pair for each reference; of the small ones another part for each."""
    rng, pools = np.random.default_rng(1), judging.pools()
    places = [
        (seed, (images * at, images * (at + 1)) if images < LARGE else (0, LARGE)) for at, seed in enumerate(REFERENCES)
    ]
    rows = []
    for name in names:
        orders = [rng.permutation(POOL).tolist() for _ in places]
        jobs = [
            Job(*place, ((name, half),))
            for place, order in zip(places, orders, strict=True)
            for half in (order[:WINDOW], order[WINDOW:])
        ]
        judged = judge(jobs)
        loss = pools[f"base {judging.scenes()[name][2]}"].map50 - pools[name].map50
        rows.append(Row(name, loss, list(zip(judged[::2], judged[1::2], strict=True))))
    return rows


def _shares(rows: Sequence[Row], drop: float) -> tuple[float, float]:
    """Pairs that ask for retraining, where ≥ .10 is lost, and where < .02 is."""
    bad = [asked for row in rows if row.loss >= 0.10 for asked in row.asked(drop)]
    harmless = [asked for row in rows if row.loss < 0.02 for asked in row.asked(drop)]
    return statistics.mean(bad), statistics.mean(harmless)


def harmed(judge: Judge) -> list[Figure]:
    """Hold the threshold against our own corruptions, then judge it on the package's and on changes of content."""
    own = _rows(judge, (name for name in judging.scenes() if name.startswith("our ")))
    print("\n| Loss that matters | our own: asked where ≥ .10 is lost | where < .02 is |\n|---|---|---|")
    for drop in DROPS:
        print("| {} | {:.3f} | {:.3f} |".format(drop, *_shares(own, drop)))
    names = [*(f"{name} {severity}" for name in TWELVE for severity in range(1, 6)), *CONTENT, *FEWER]
    rows = _rows(judge, names)
    print("\n| Change | true loss of mAP50 | estimated | asked | by confidence alone |\n|---|---|---|---|---|")
    for row in rows:
        estimated = statistics.mean(seen.loss for pair in row.pairs for seen in pair)
        asked, plain = statistics.mean(row.asked(DROP)), statistics.mean(row.by_confidence())
        print(f"| {row.name} | {row.loss:.3f} | {estimated:.3f} | {asked:.1f} | {plain:.1f} |")
    starts = [2 * WINDOW * at for at in range(CLEAN_PAIRS)]
    jobs = [
        Job(REFERENCES[at % len(REFERENCES)], (0, LARGE), (("clean", range(first, first + WINDOW)),))
        for at, start in enumerate(starts)
        for first in (start, start + WINDOW)
    ]
    judged = judge(jobs)
    clean = Row("clean", 0.0, list(zip(judged[::2], judged[1::2], strict=True)))
    bad, harmless = _shares(rows, DROP)
    plain = statistics.mean(asked for row in rows if row.loss >= 0.10 for asked in row.by_confidence())
    small = _shares(_rows(judge, names, SMALL), DROP)
    print(f"\nReferences of {SMALL} images: asked {small[0]:.3f} where ≥ .10 is lost, {small[1]:.3f} where < .02 is")
    errors = [abs(seen.loss - max(row.loss, 0)) for row in rows for pair in row.pairs for seen in pair]
    simple = f"by confidence alone: {100 * plain:.1f} %"
    return [
        Figure("retraining asked for where ≥ .10 mAP50 is lost", 100 * bad, "%", ">=", 95, simple),
        Figure("retraining asked for where < .02 mAP50 is lost", 100 * harmless, "%", "<=", 5),
        Figure(f"retraining asked for by {CLEAN_PAIRS} clean pairs", sum(clean.asked(DROP)), "", "<=", 0),
        Figure("mean error of the estimated loss of mAP50", statistics.mean(errors), "", "<=", 0.051),
    ]


def speed() -> list[Figure]:
    """Time to judge 1,000 requests that have changed, which takes longest, and to calibrate."""
    known, worth = judging.reference(REFERENCES[0], 0, LARGE), judging.estimator(REFERENCES[0])
    clean = judging.pools()["clean"].window.part(0, 1000)
    window = clean._replace(embeddings=clean.embeddings + 1, features=clean.features + 1)

    def once() -> None:
        compare(known, window, ALPHA, "ks+mmd")
        harm.hurts(worth, known, [window], DROP)

    theirs = seconds(lambda: compare(known, window, ALPHA, "alibi-mmd"))  # with the import
    theirs = min(theirs, seconds(lambda: compare(known, window, ALPHA, "alibi-mmd")))
    images, predictor = labelled(Scene(), 100, REFERENCES[0]), Predictor(detector())
    peer = f"alibi-detect's MMD alone: {theirs:.1f} s"
    return [
        median("1,000 requests judged", [seconds(once) for _ in range(9)], "s", "<=", 0.3, peer),
        Figure("harm calibrated on 100 images", seconds(lambda: harm.calibrate(predictor, images)), "s", "<=", 10),
    ]


def figures() -> list[Figure]:
    """Train and ask if need be (five minutes), then judge."""
    with judging.judge() as judge:
        found = [*false_alarms(judge), *power(judge), *harmed(judge)]
    return [*found, *speed()]


def main() -> None:
    print(f"seeds: {SEED}")
    publish("drift", figures())


if __name__ == "__main__":
    main()
