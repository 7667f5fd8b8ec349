"""From numbers to a decision. No data is inconclusive, never a pass; whatever is not a pass keeps the champion."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..runtime.artifacts import Check, Decision
from ..runtime.config import Evaluate
from ..statistics.bootstrap import Bounds

MIN_UNITS = 20
"""Independent images below which resampling them tells nothing that can be believed."""


@dataclass(frozen=True)
class Comparison:
    """Challenger and champion on the same images.

    Args:
        difference: mAP50 of the challenger less the champion's, over the classes that both know; None if no such
            class has a labelled box.
        units: Independent images, or groups of images, that it was measured on.
        classes: Number of classes that both know.
        lost: Classes that the champion serves and the challenger does not know.
    """

    difference: Bounds | None
    units: int
    classes: int
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Older:
    """A holdout that the data version inherited.

    Args:
        dataset: The data version that it was frozen with.
        images: Its images.
        comparison: With the champion on them.
    """

    dataset: str
    images: int
    comparison: Comparison


@dataclass(frozen=True)
class Measured:
    """All that the gate looks at.

    Args:
        images: Images of the data's own holdout, which all but `older` was measured on.
        map50: Of the challenger; None if the holdout has no labelled box.
        class_map50: Of the challenger, by class; None for a class without a labelled box.
        latency_ms: Median time of one image on one thread.
        size_mb: Of the exported model, in 10⁶ bytes.
        comparison: With the champion; None if there is no champion.
        older: The comparison on inherited holdouts; none if there is no champion.
    """

    images: int
    map50: float | None
    class_map50: Mapping[str, float | None]
    latency_ms: float | None
    size_mb: float | None
    comparison: Comparison | None
    older: tuple[Older, ...] = ()


def judge(measured: Measured, limits: Evaluate) -> tuple[tuple[Check, ...], Decision, str]:
    """Hold a challenger against its limits.

    Returns:
        The checks; fail if one fails, else undecided if one is undecided, else pass; and the reason for a person.
    """
    enough = measured.images >= limits.min_images
    checks = (
        Check(
            name="images",
            value=measured.images,
            limit=limits.min_images,
            outcome="pass" if enough else "undecided",
            sentence=f"The holdout has {measured.images} images; {limits.min_images} are needed to decide anything.",
        ),
        *(_if_enough(measured.images, limits, check) for check in _accuracy(measured, limits)),
        *(_if_enough(older.images, limits, _older(older, limits)) for older in measured.older),
        *_classes(measured.comparison),
        _at_most("latency", measured.latency_ms, limits.max_latency_ms, "One image on one thread takes", "ms", 1),
        _at_most("size", measured.size_mb, limits.max_size_mb, "The exported model has", "MB", 2),
    )
    decision = _together([check.outcome for check in checks])
    return checks, decision, _reason(checks, decision)


def _accuracy(measured: Measured, limits: Evaluate) -> list[Check]:
    return [_overall(measured, limits), _worst_class(measured, limits), _champion(measured, limits)]


def _overall(measured: Measured, limits: Evaluate) -> Check:
    value, limit = _finite(measured.map50), limits.min_map50
    if value is None:
        return _check("mAP50", None, limit, "undecided", "The holdout has no labelled box: nothing can be measured.")
    good = value >= limit
    verb = "reaches" if good else "is below"
    return _check("mAP50", value, limit, "pass" if good else "fail", f"mAP50 {value:.3f} {verb} the limit {limit:.3f}.")


def _worst_class(measured: Measured, limits: Evaluate) -> Check:
    """Averages hide a class that is never found, and a class without a box hides altogether."""
    limit, name = limits.min_class_map50, "worst class"
    known = {key: value for key, value in measured.class_map50.items() if _finite(value) is not None}
    missing = [key for key in measured.class_map50 if key not in known]
    worst = min(known, key=lambda key: (known[key], key), default=None)
    value = None if worst is None else known[worst]
    if value is not None and value < limit:
        return _check(name, value, limit, "fail", f"AP50 of {worst!r} is {value:.3f}, below the limit {limit:.3f}.")
    if missing and limit > 0:
        sentence = (
            f"The holdout has no box of {_listed(missing)}, so nothing is known about that; label some test images "
            "with it, or set min_class_map50=0 to ask nothing of single classes."
        )
        return _check(name, value, limit, "undecided", sentence)
    if value is None:
        return _check(name, None, limit, "undecided", "The holdout has no labelled box of any class.")
    sentence = f"The worst class, {worst!r}, has AP50 {value:.3f}; the limit is {limit:.3f}."
    if missing:
        sentence += f" Nothing is known about {_listed(missing)}, and nothing is asked."
    return _check(name, value, limit, "pass", sentence)


def _classes(comparison: Comparison | None) -> list[Check]:
    if comparison is None or not comparison.lost:
        return []
    sentence = (
        f"The champion serves {_listed(comparison.lost)}, which this model does not know; serve it at an endpoint of "
        "its own, or give the class back to the data."
    )
    return [_check("classes", len(comparison.lost), 0, "fail", sentence)]


def _champion(measured: Measured, limits: Evaluate) -> Check:
    """Not inferior; beside older holdouts better, for the new images are what was learned for."""
    if measured.comparison is None:
        sentence = "The endpoint has no champion: there is nothing to be inferior to."
        return _check("champion", None, -limits.margin, "pass", sentence)
    margin = None if measured.older else limits.margin
    return _compared("champion", measured.comparison, margin, "Against the champion")


def _older(older: Older, limits: Evaluate) -> Check:
    against = f"On the {older.images} images of the older holdout {older.dataset}, against the champion,"
    return _compared(f"holdout {older.dataset}", older.comparison, limits.old_margin, against)


def _compared(name: str, comparison: Comparison, margin: float | None, against: str) -> Check:
    """Shown by the lower bound of the difference, refuted by the upper one.

    Args:
        margin: Loss that is still not inferior; None: it must be better.
        against: Begins the sentence.
    """
    found, limit = comparison.difference, 0.0 if margin is None else -margin
    if found is None or not all(_finite(value) is not None for value in (found.estimate, found.lower, found.upper)):
        sentence = f"{against} the change of mAP50 cannot be measured: no class that both know has a labelled box."
        return _check(name, None, limit, "undecided", sentence)
    if margin is None:
        shown, refuted = found.lower > 0, found.upper <= 0
        must = "better, as it must be on new images"
        said = ("it is better.", f"it is not {must}.", f"that it is {must}, is not shown.")
    else:
        shown, refuted = found.lower >= limit, found.upper < limit
        loss = f"a loss of more than {margin:.3f}"
        said = (
            f"{loss} is ruled out.",
            f"it loses more than the margin {margin:.3f}.",
            f"{loss} is neither shown nor ruled out.",
        )
    outcome: Decision = "pass" if shown else "fail" if refuted else "undecided"
    rest = said[("pass", "fail", "undecided").index(outcome)]
    if comparison.units < MIN_UNITS:
        outcome, rest = "undecided", f"{MIN_UNITS} independent images are needed for bounds that can be believed."
    seen = (
        f"{against} mAP50 changes by {found.estimate:+.3f} ({found.level:.0%} bounds {found.lower:+.3f} and "
        f"{found.upper:+.3f}, {comparison.units} independent images, classes in common: {comparison.classes})"
    )
    return _check(name, found.lower, limit, outcome, f"{seen}: {rest}")


def _at_most(name: str, value: float | None, limit: float, what: str, unit: str, digits: int) -> Check:
    found = _finite(value)
    if found is None:
        return _check(name, None, limit, "undecided", f"{name.capitalize()} was not measured.")
    good = found <= limit
    sentence = f"{what} {found:.{digits}f} {unit}, {'within' if good else 'above'} the limit {limit:g} {unit}."
    return _check(name, found, limit, "pass" if good else "fail", sentence)


def _if_enough(images: int, limits: Evaluate, check: Check) -> Check:
    """On too few images nothing about accuracy is known, for better or worse; only that there is no champion is."""
    if images >= limits.min_images or check.value is None:
        return check
    sentence = f"Not judged on fewer than {limits.min_images} images. {check.sentence}"
    return check.but(outcome="undecided", sentence=sentence)


def _check(name: str, value: float | None, limit: float, outcome: Decision, sentence: str) -> Check:
    return Check(name=name, value=value, limit=limit, outcome=outcome, sentence=sentence)


def _together(outcomes: Sequence[Decision]) -> Decision:
    for decision in ("fail", "undecided"):
        if decision in outcomes:
            return decision
    return "pass"


def _reason(checks: Sequence[Check], decision: Decision) -> str:
    if decision == "pass":
        shown = [check.sentence for check in checks if check.name.startswith(("mAP50", "champion", "holdout "))]
        return f"All {len(checks)} checks passed. {' '.join(shown)}"
    return " ".join(check.sentence for check in checks if check.outcome == decision)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _listed(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest
