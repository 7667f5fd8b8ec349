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
class Measured:
    """All that the gate looks at.

    Args:
        images: Holdout images.
        map50: Of the challenger; None if the holdout has no labelled box.
        class_map50: Of the challenger, by class; None for a class without a labelled box.
        latency_ms: Median time of one image on one thread.
        size_mb: Of the exported model, in 10⁶ bytes.
        comparison: With the champion; None if there is no champion.
    """

    images: int
    map50: float | None
    class_map50: Mapping[str, float | None]
    latency_ms: float | None
    size_mb: float | None
    comparison: Comparison | None


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
        *(check if enough else _too_few(check, limits.min_images) for check in _accuracy(measured, limits)),
        *_classes(measured.comparison),
        _at_most("latency", measured.latency_ms, limits.max_latency_ms, "One image on one thread takes", "ms", 1),
        _at_most("size", measured.size_mb, limits.max_size_mb, "The exported model has", "MB", 2),
    )
    decision = _together([check.outcome for check in checks])
    return checks, decision, _reason(checks, decision)


def _accuracy(measured: Measured, limits: Evaluate) -> list[Check]:
    return [_overall(measured, limits), _worst_class(measured, limits), _champion(measured.comparison, limits)]


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


def _champion(comparison: Comparison | None, limits: Evaluate) -> Check:
    """Not inferior: the challenger loses at most the margin. Shown by the lower bound, refuted by the upper one."""
    name, limit = "champion", -limits.margin
    if comparison is None:
        return _check(name, None, limit, "pass", "The endpoint has no champion: there is nothing to be inferior to.")
    found = comparison.difference
    if found is None or not all(_finite(value) is not None for value in (found.estimate, found.lower, found.upper)):
        sentence = "The difference to the champion cannot be measured: no class that both know has a labelled box."
        return _check(name, None, limit, "undecided", sentence)
    seen = (
        f"Against the champion mAP50 changes by {found.estimate:+.3f} ({found.level:.0%} bounds {found.lower:+.3f} and "
        f"{found.upper:+.3f}, {comparison.units} independent images, classes in common: {comparison.classes})"
    )
    if comparison.units < MIN_UNITS:
        outcome: Decision = "undecided"
        rest = f"{MIN_UNITS} independent images are needed for bounds that can be believed."
    elif found.lower >= limit:
        outcome, rest = "pass", f"a loss of more than {limits.margin:.3f} is ruled out."
    elif found.upper < limit:
        outcome, rest = "fail", f"it loses more than the margin {limits.margin:.3f}."
    else:
        outcome, rest = "undecided", f"a loss of more than {limits.margin:.3f} is neither shown nor ruled out."
    return _check(name, found.lower, limit, outcome, f"{seen}: {rest}")


def _at_most(name: str, value: float | None, limit: float, what: str, unit: str, digits: int) -> Check:
    found = _finite(value)
    if found is None:
        return _check(name, None, limit, "undecided", f"{name.capitalize()} was not measured.")
    good = found <= limit
    sentence = f"{what} {found:.{digits}f} {unit}, {'within' if good else 'above'} the limit {limit:g} {unit}."
    return _check(name, found, limit, "pass" if good else "fail", sentence)


def _too_few(check: Check, needed: int) -> Check:
    """On too few images nothing about accuracy is known, for better or worse; only that there is no champion is."""
    if check.value is None:
        return check
    sentence = f"Not judged on fewer than {needed} images. {check.sentence}"
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
        shown = [check.sentence for check in checks if check.name in ("mAP50", "champion")]
        return f"All {len(checks)} checks passed. {' '.join(shown)}"
    return " ".join(check.sentence for check in checks if check.outcome == decision)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _listed(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest
