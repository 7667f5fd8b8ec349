"""From numbers about a window of requests to a decision, and when labels may be asked for. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..recipes.detection.harm import Loss
from ..runtime.artifacts import Drift, LabelRequest
from ..runtime.config import Monitor

Decision = Literal["quiet", "alert", "retrain", "undecided"]
BUDGET_S = 30 * 86_400.0
MEASURED_LOSS = 0.03
"""Loss of mAP50 that labels have to show, with 95 % confidence, before it counts as harm."""


@dataclass(frozen=True)
class Measured:
    """Accuracy on recorded requests that have labels.

    Args:
        images: How many.
        loss: mAP50 on the holdout less the one on them.
        at_least: One-sided 95 % lower bound of the loss; None on too few images.
    """

    images: int
    loss: float
    at_least: float | None


@dataclass(frozen=True)
class Seen:
    """What is known of a window.

    Args:
        count: Requests in it.
        tests: Of drift.
        confidence: Relative fall of the mean confidence; None if it is not known.
        loss: Estimated loss of mAP50; None if it is not known, or not looked for where nothing drifted.
        before: The same in the window before; None if nothing drifted there.
        problem: Why nothing can be known, if so.
    """

    count: int = 0
    tests: tuple[Drift, ...] = ()
    confidence: float | None = None
    loss: Loss | None = None
    before: Loss | None = None
    measured: Measured | None = None
    problem: str = ""


def judge(seen: Seen, settings: Monitor) -> tuple[Decision, str]:
    """Decide, and say why in one sentence."""
    if seen.problem:
        return "undecided", seen.problem
    measured = seen.measured
    if measured and measured.at_least is not None and measured.at_least > MEASURED_LOSS:
        return "retrain", (
            f"on {measured.images} labelled requests mAP50 is {measured.loss:.3f} below the holdout's, certainly by "
            f"more than {MEASURED_LOSS:g}."
        )
    if seen.count < settings.window:
        return "undecided", f"{seen.count} requests are recorded, and {settings.window} make a window."
    drifted = [test for test in seen.tests if test.drifted]
    if not drifted:
        return "quiet", f"the last {seen.count} requests look like the holdout ({len(seen.tests)} tests)."
    names = ", ".join(test.name for test in sorted(drifted, key=lambda test: test.p_value)[:3])
    more = f" and {len(drifted) - 3} more" if len(drifted) > 3 else ""
    what = f"the last {seen.count} requests differ from the holdout in {names}{more}"
    if seen.loss is None:
        return "alert", f"{what}; whether it hurts is not known."
    costs = f"{seen.loss.estimate:.2f} mAP50"
    if not seen.loss.hurts(settings.harm_drop):
        return "alert", f"{what}; that costs an estimated {costs}, which is no harm."
    if seen.before is None or not seen.before.hurts(settings.harm_drop):
        return "alert", f"{what}; that costs an estimated {costs}, which is harm if the next window shows it too."
    return "retrain", f"{what}; that costs an estimated {costs}, and the window before showed the same."


def may_ask(
    asked: Sequence[LabelRequest],
    open_: Sequence[LabelRequest],
    working: Sequence[str],
    settings: Monitor,
    now: float,
) -> tuple[bool, str]:
    """Whether labels may be asked for now, and if not why.

    Args:
        asked: All earlier requests of the endpoint, oldest first.
        open_: Those among them whose labels are not all there.
        working: Names of retrainings that have not ended.
        now: Seconds since the epoch.
    """
    if working:
        return False, f"retraining {working[-1]} has not ended"
    if open_:
        return False, f"labels were asked for {_ago(now - open_[-1].at)} ago, in {open_[-1].folder}"
    if asked and now - asked[-1].at < settings.cooldown_s:
        return False, (
            f"the last request is {_ago(now - asked[-1].at)} old, and cooldown_s is {_ago(settings.cooldown_s)}"
        )
    recent = sum(now - request.at < BUDGET_S for request in asked)
    if recent >= settings.budget:
        return False, f"{recent} requests were opened in 30 days, and budget is {settings.budget}"
    return True, ""


def _ago(seconds: float) -> str:
    """A time for a person: one number and a unit."""
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
