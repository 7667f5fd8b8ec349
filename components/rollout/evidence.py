"""What the looks at a canary show, and what follows: pure, so a rollout that was killed decides the same again.

One budget of error for a whole rollout. The chance to roll back a canary that is as good as the stable is at most
`HARM` in all, shared out over errors, slowness and replays, however many looks there are: each is an e-process
(statistics/sequential.py). The chance to promote one that is worse by a margin is at most `PROMOTE`: it has to be shown
of every metric that it is not, so nothing is shared out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from ..runtime.artifacts import Check, Decision
from ..runtime.config import Rollout
from ..runtime.ports import Counts
from ..runtime.records import Record
from ..statistics.sequential import SLOW_RATIOS, Floats, Looks, harm, loss, non_inferiority

ERRORS, SLOW, REPLAYS = 0.025, 0.016, 0.009
HARM = ERRORS + SLOW + REPLAYS
PROMOTE = 0.04
TOLERATED = 1.3
"""How many times as often an answer may be slow: two arms of one machine differ by themselves (garbage collection,
caches), and tests that assume independence take that for harm."""
Ints = npt.NDArray[np.int64]
QUANTILES = (0.5, 0.9, 0.99)
"""Of the stable's own times: an answer beyond is slow. Harm is sought at each, non-inferiority at the middle one."""
ENOUGH = 100
"""Answers of the stable from which its quantiles are read."""
MIN_PAIRS = 20
"""Answers from which their mean can be believed."""
AWAY = 0.01
"""Chance of as many requests to the canary as in a look, below which they were no draw."""
ALL = "+Inf"
ANSWERED_FEW = "It was sent copies, and answered too few requests of its own."


class Look(Record):
    """What was counted between two looks.

    Args:
        at: When it ended, in seconds since the epoch.
        weight: The canary's share of the traffic in percent, as it was asked for.
        shadow: Whether it was sent a copy of each request.
        canary, stable: Counts since the look before.
    """

    at: float
    weight: int
    shadow: bool = False
    canary: Counts
    stable: Counts


class Replayed(Record):
    """What the shadow showed, before any traffic.

    Args:
        labelled: Questions about labelled images.
        recorded: Questions about images of recorded requests.
        differences: The canary's score less the stable's, question by question: F1 on a labelled image, on a recorded
            one whether it was answered; a failure scores 0.
        agreement: F1 between their answers to recorded requests in which either saw something.
        expected: The same as evaluate measured it for this very pair.
    """

    labelled: int = 0
    recorded: int = 0
    differences: tuple[float, ...] = ()
    agreement: tuple[float, ...] = ()
    expected: tuple[float, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What follows from the looks so far; `go` is to look again, with the canary at `weight` percent."""

    decision: Literal["promote", "rollback", "hold", "go"]
    reason: str
    weight: int
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Shown:
    """Evidence after each look, (..., looks): that the canary does harm, and that it is not inferior."""

    errors: Floats
    slow: Floats
    few_errors: Floats
    seldom_slow: Floats


def share_of(weight: Ints, canary: Ints, stable: Ints) -> Floats:
    """The canary's share of the requests at each look: what was asked for, or what was surely counted, if that is more.

    The gateway draws by weight, so what was asked for is the truth, and more than the truth only makes harm harder to
    show. What is counted, less two standard errors, guards against a gateway that does not do as it is told. In a look
    that is too unlikely what is counted is the truth: the stable was away, and left its requests to the canary.

    Args:
        weight: In percent, (..., looks).
        canary, stable: Requests at each look, of the same shape.
    """
    share = weight / 100
    for step in np.unique(weight):
        at = weight == step
        mine, both = np.cumsum(canary * at, axis=-1), np.cumsum((canary + stable) * at, axis=-1)
        counted = np.divide(mine, both, out=np.zeros(share.shape), where=both > 0)
        surely = counted - 2 * np.sqrt(counted * (1 - counted) / np.maximum(both, 1))
        share = np.where(at, np.maximum(share, surely), share)
    both = canary + stable
    away = binom.sf(canary - 1, both, share) < AWAY
    return np.where(away, np.divide(canary, both, out=np.ones(share.shape), where=both > 0), share)


def since(now: Counts, before: Counts) -> Counts:
    """Counts between two looks. A counter that began anew, because its process did, counts from nothing."""
    if now.requests < before.requests or now.failures < before.failures:
        return now
    within = {edge: count - before.within.get(edge, 0) for edge, count in now.within.items()}
    if any(count < 0 for count in within.values()):
        return now
    return Counts(requests=now.requests - before.requests, failures=now.failures - before.failures, within=within)


def edges(stable: Counts) -> tuple[str, ...]:
    """The histogram's edges next above QUANTILES of the stable's answers; none as long as there are too few answers."""
    total = stable.within.get(ALL, 0)
    if total < ENOUGH:
        return ()
    rising = sorted(stable.within, key=float)
    return tuple(next(edge for edge in rising if stable.within[edge] >= share * total) for share in QUANTILES)


def weigh(errors: Looks, slow: Sequence[Looks], settings: Rollout) -> Shown:
    """Weigh what was counted.

    Args:
        errors: Answers, and those that failed.
        slow: For each of QUANTILES, answers and those that took longer; of no use as long as it is empty.
    """
    none = np.ones(errors.canary.shape)
    found = [harm(looks, TOLERATED, SLOW_RATIOS) for looks in slow]
    return Shown(
        errors=harm(errors),
        slow=np.mean(found, axis=0) if found else none,
        few_errors=non_inferiority(errors, settings.error_margin),
        seldom_slow=non_inferiority(slow[1], settings.slow_margin) if slow else none,
    )


def judge(before: Counts, looks: Sequence[Look], replayed: Replayed, settings: Rollout) -> Verdict:
    """Decide what follows.

    Args:
        before: The stable's cumulative counts when the rollout began: from them comes what is slow.
        looks: All looks so far, oldest first.
        replayed: What the shadow showed.
    """
    errors, slow, bound = _arrays(before, looks)
    shown = weigh(errors, slow, settings)
    canary, stable = int(errors.canary.sum()), int(errors.stable.sum())
    checks = (
        _shadow_check(replayed),
        _agreement_check(replayed),
        _harm_check("errors", shown.errors, ERRORS, _rates(errors, "failures")),
        _harm_check("slow", shown.slow, SLOW, _rates(slow[1], f"answers slower than {bound}") if slow else "unknown"),
        _fine_check("errors within margin", shown.few_errors, f"{settings.error_margin:.1%} more failures"),
        _fine_check("slow within margin", shown.seldom_slow, f"{settings.slow_margin:.1%} more slow answers"),
    )
    counted = f"after {canary} requests to the canary and {stable} to the stable"
    weight = settings.shares[min(canary // settings.step_requests, len(settings.shares) - 1)]
    _, agreement, _, _, *needed = checks
    bad = [check for check in checks if check.outcome == "fail" and check is not agreement]
    if bad:
        return Verdict("rollback", f"{_said(bad)} ({counted})", weight, checks)
    missing = [check for check in needed if check.outcome != "pass"]
    answered = sum(look.canary.requests for look in looks if not look.shadow)
    only_copies = settings.shares[0] == 0 < settings.shares[-1] and answered < settings.step_requests
    if not missing and not only_copies:
        if agreement.outcome == "fail":
            return Verdict("hold", f"{agreement.sentence} ({counted})", weight, checks)
        return Verdict("promote", f"{_said(needed)} ({counted})", weight, checks)
    elapsed = len(looks) * settings.look_s  # not by the clock, which may jump
    if canary + stable >= settings.max_requests or elapsed >= settings.max_seconds:
        why = f"nothing was shown either way {counted}, in {elapsed:.0f} s: {_said(missing) or ANSWERED_FEW}"
        return Verdict("hold", why, weight, checks)
    return Verdict("go", f"{counted}, nothing is decided yet", weight, checks)


def _said(checks: Sequence[Check]) -> str:
    return " ".join(check.sentence for check in checks)


def _arrays(before: Counts, looks: Sequence[Look]) -> tuple[Looks, list[Looks], str]:
    """Looks as arrays: of errors, and of slowness at each edge, from the look on at which the edges are known."""
    rows = [(look.canary.requests, look.canary.failures, look.stable.requests, look.stable.failures) for look in looks]
    # In the shadow both are asked the same. What then fails in both hides harm and never makes it up: the tests
    # allow for two numbers of failures that know nothing of each other, and these differ less.
    weight = np.array([50 if look.shadow else look.weight for look in looks], dtype=np.int64)
    counted = np.array(rows, dtype=np.int64).reshape(-1, 4)
    share = share_of(weight, counted[:, 0], counted[:, 2])
    errors = _looks(rows, share)
    seen, known, start = before, edges(before), 0
    while not known and start < len(looks):
        seen = _plus(seen, looks[start].stable)
        known, start = edges(seen), start + 1
    slow = [_slow_at(edge, looks, start, share) for edge in known]
    return errors, slow, f"{float(known[1]) * 1000:.0f} ms" if known else ""


def _looks(rows: Sequence[tuple[int, int, int, int]], share: Floats) -> Looks:
    """Rows of requests to the canary, bad ones among them, and the same of the stable."""
    canary, canary_bad, stable, stable_bad = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Looks(canary, canary_bad, stable, stable_bad, share)


def _slow_at(edge: str, looks: Sequence[Look], start: int, share: Floats) -> Looks:
    """Answers, and those slower than an edge; nothing before the look at `start`."""
    rows = [(0, 0, 0, 0)] * start
    rows += [(*_slow(look.canary, edge), *_slow(look.stable, edge)) for look in looks[start:]]
    return _looks(rows, share)


def _slow(counts: Counts, edge: str) -> tuple[int, int]:
    total = counts.within.get(ALL, 0)
    return total, total - counts.within.get(edge, total)


def _plus(one: Counts, other: Counts) -> Counts:
    within: Mapping[str, int] = {
        edge: one.within.get(edge, 0) + other.within.get(edge, 0) for edge in one.within.keys() | other.within.keys()
    }
    return Counts(requests=one.requests + other.requests, failures=one.failures + other.failures, within=dict(within))


def _rates(looks: Looks, what: str) -> str:
    return f"canary {_rate(looks.canary_bad, looks.canary)}, stable {_rate(looks.stable_bad, looks.stable)} {what}"


def _rate(bad: Ints, all_: Ints) -> str:
    total = int(all_.sum())
    return f"{bad.sum() / total:.2%}" if total else "no"


def _most(evidence: Floats) -> float:
    """An e-process may be stopped whenever one likes, so its greatest value counts."""
    return float(evidence.max(initial=1.0))


def _harm_check(name: str, evidence: Floats, alpha: float, seen: str) -> Check:
    most = _most(evidence)
    found = most >= 1 / alpha
    sentence = f"The canary is worse: {seen}." if found else f"No harm is shown: {seen}."
    return _check(name, most, alpha, "fail" if found else "pass", sentence)


def _fine_check(name: str, evidence: Floats, what: str) -> Check:
    most = _most(evidence)
    shown = most >= 1 / PROMOTE
    sentence = f"{what} than the stable's {'are ruled out' if shown else 'are not ruled out'}."
    return _check(name, most, PROMOTE, "pass" if shown else "undecided", sentence)


def _shadow_check(replayed: Replayed) -> Check:
    differences = np.array(replayed.differences, dtype=np.float64)
    if not len(differences):
        return _check("shadow", 1.0, REPLAYS, "undecided", "Nothing was replayed in the shadow.")
    most = _most(loss(differences))
    found = most >= 1 / REPLAYS
    asked = f"{replayed.labelled} labelled and {replayed.recorded} recorded images"
    verb = "is worse" if found else "shows no harm"
    sentence = f"In the shadow the canary {verb}: its score differs by {differences.mean():+.3f} on {asked}."
    return _check("shadow", most, REPLAYS, "fail" if found else "pass", sentence)


def _agreement_check(replayed: Replayed) -> Check:
    """A better model has to differ, but not more from the champion than when the two were judged: that is looked at by
    a person. Means of many values are compared, once, so the normal distribution will do."""
    found, wanted = (np.array(values, dtype=np.float64) for values in (replayed.agreement, replayed.expected))
    name, limit = "agreement", 3.0
    if min(len(found), len(wanted)) < MIN_PAIRS:
        few = f"{len(found)} recorded requests and {len(wanted)} images of the evaluation"
        sentence = f"How far the two agree is not known: {few} tell, and {MIN_PAIRS} of each are needed."
        return Check(name=name, value=None, limit=limit, outcome="undecided", sentence=sentence)
    error = np.sqrt(found.var(ddof=1) / len(found) + wanted.var(ddof=1) / len(wanted))
    lower = float(wanted.mean() - found.mean())
    away = lower / error if error > 0 else (np.inf if lower > 0 else 0.0)
    apart = away > limit
    sentence = (
        f"On recorded requests the two agree to {found.mean():.3f} F1, and to {wanted.mean():.3f} when they were judged"
        f"{': they are asked something else, or one of them is not what was judged' if apart else ''}."
    )
    value = round(float(min(away, 1e6)), 3)
    return Check(name=name, value=value, limit=limit, outcome="fail" if apart else "pass", sentence=sentence)


def _check(name: str, evidence: float, alpha: float, outcome: Decision, sentence: str) -> Check:
    return Check(name=name, value=round(evidence, 3), limit=1 / alpha, outcome=outcome, sentence=sentence)
