"""Simulated rollouts, judged as rollout judges them: `python -m tests.bench.canary`.

A second is a look with 20 requests. Answers take 10 ms (median; lognormal, sigma 0.3). All metrics count together. What
Flagger and Argo Rollouts do by default, and naive peeking, is computed on the very same streams.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from kfp_flywheel.components.rollout.evidence import (
    ERRORS,
    HARM,
    PROMOTE,
    QUANTILES,
    REPLAYS,
    SLOW,
    Look,
    Replayed,
    judge,
    share_of,
    weigh,
)
from kfp_flywheel.components.runtime.config import Rollout
from kfp_flywheel.components.runtime.ports import BURST, Counts
from kfp_flywheel.components.serving.metrics import BUCKETS
from kfp_flywheel.components.statistics.sequential import Looks, loss
from rich.console import Console
from rich.table import Table
from scipy import stats

from .figures import Figure

SEED = 20261121
ROLLOUTS, LOOK, RATE = 1000, 20, 20.0
SIGMA, MEDIAN_S = 0.3, 0.010
SETTINGS = Rollout()
NEVER = np.iinfo(np.int64).max
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Streams:
    """Counts by rollout and look. `answers_bad` counts every failed answer of the canary, `errors` one for a burst."""

    errors: Looks
    slow: tuple[Looks, ...]
    answers_bad: Ints
    stable_bad: Ints


@dataclass(frozen=True)
class Scrapes:
    """How Prometheus learns what was counted.

    Args:
        every: Looks from one scrape of a pod to the next.
        late: Looks from the stable's scrape to the canary's, less than `every`.
    """

    every: int = 1
    late: int = 0

    def told(self, canary: Ints, stable: Ints) -> tuple[Ints, Ints]:
        """What a look has news of, of what was counted at each: both are told when the later one was scraped."""
        at = np.arange(self.late, canary.shape[-1], self.every)
        return _told(canary, at, at), _told(stable, at, at - self.late)


def _told(counts: Ints, at: Ints, until: Ints) -> Ints:
    found = np.zeros_like(counts)
    found[..., at] = np.diff(np.cumsum(counts, axis=-1)[..., until], axis=-1, prepend=0)
    return found


def streams(
    seed: int, stable: float, canary: float, times: float = 1.0, burst: int = 1, most: int = 10_000,
    scrapes: Scrapes = Scrapes(),
) -> Streams:  # fmt: skip
    """Draw rollouts.

    Args:
        stable, canary: Shares of failed answers.
        times: How many times as long the canary takes.
        burst: Failed answers that come together.
        most: Requests of a rollout.
    """
    rng = np.random.default_rng([SEED, seed])
    looks = most // LOOK
    shape = (ROLLOUTS, looks)
    asked, weight = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    given = told = np.zeros(ROLLOUTS, np.int64)
    for look in range(looks):
        step = np.minimum(told // SETTINGS.step_requests, len(SETTINGS.shares) - 1)
        weight[:, look] = np.array(SETTINGS.shares)[step]
        asked[:, look] = rng.binomial(LOOK, weight[:, look] / 100)
        given = given + asked[:, look]
        told = given if look % scrapes.every == scrapes.late else told
    rest = LOOK - asked
    (events, bad), (stable_events, stable_bad) = (
        _failures(rng, count, rate, burst) for count, rate in ((asked, canary), (rest, stable))
    )
    news, rest_news = scrapes.told(asked, rest)
    share = share_of(weight, news, rest_news)
    edges = [next(e for e in BUCKETS if e >= MEDIAN_S * np.exp(SIGMA * stats.norm.ppf(q))) for q in QUANTILES]
    slow = zip(*(_slower(rng, n, edges, by) for n, by in ((asked, times), (rest, 1.0))), strict=True)
    errors, *slower = (
        Looks(news, mine, rest_news, theirs, share)
        for mine, theirs in itertools.starmap(scrapes.told, ((events, stable_events), *slow))
    )
    return Streams(errors, tuple(slower), bad, stable_bad)


def _failures(rng: np.random.Generator, count: Ints, rate: float, burst: int) -> tuple[Ints, Ints]:
    """Failures by look, as the gateway counts them (some in a row are one), and every failed answer."""
    total = int(count.sum(-1).max())
    starts = rng.random((total, ROLLOUTS), dtype=np.float32) < rate / burst
    left, row = np.zeros(ROLLOUTS, np.int64), np.zeros(ROLLOUTS, np.int64)
    events, bad = np.zeros((total + 1, ROLLOUTS), np.int32), np.zeros((total + 1, ROLLOUTS), np.int32)
    for number, start in enumerate(starts, 1):
        left = np.where(start, burst, np.maximum(left - 1, 0))
        row = np.where(left > 0, row + 1, 0)
        bad[number] = bad[number - 1] + (left > 0)
        events[number] = events[number - 1] + (row % BURST == 1)
    reached = np.cumsum(count, -1)
    which = np.arange(ROLLOUTS)[:, None]
    return tuple(np.diff(seen[reached, which], axis=-1, prepend=0) for seen in (events, bad))  # type: ignore[return-value]


def _slower(rng: np.random.Generator, count: Ints, edges: list[float], times: float) -> Iterator[Ints]:
    """How many of some answers took longer than each of rising edges."""
    before = 1.0
    for edge in edges:
        share = float(stats.norm.sf(np.log(edge / MEDIAN_S / times) / SIGMA))
        count = rng.binomial(count, share / before)
        before = share
        yield count


def first(evidence: npt.NDArray[np.float64], alpha: float) -> Ints:
    """Index of the look at which evidence suffices."""
    hit = evidence >= 1 / alpha
    return np.where(hit.any(-1), hit.argmax(-1), NEVER)


@dataclass(frozen=True)
class Outcomes:
    """What became of simulated rollouts, and after how many looks."""

    rolled_back: npt.NDArray[np.bool_]
    promoted: npt.NDArray[np.bool_]
    look: Ints

    @property
    def requests(self) -> Ints:
        return (self.look + 1) * LOOK


def ours(drawn: Streams, most: int = SETTINGS.max_requests) -> Outcomes:
    looks = most // LOOK
    drawn = Streams(
        _cut(drawn.errors, looks), tuple(_cut(part, looks) for part in drawn.slow), drawn.answers_bad, drawn.stable_bad
    )
    shown = weigh(drawn.errors, drawn.slow, SETTINGS)
    bad = np.minimum(first(shown.errors, ERRORS), first(shown.slow, SLOW))
    good = np.maximum(first(shown.few_errors, PROMOTE), first(shown.seldom_slow, PROMOTE))
    back = (bad <= good) & (bad < NEVER)
    promoted = (good < bad) & (good < NEVER)
    return Outcomes(back, promoted, np.where(back, bad, np.where(promoted, good, drawn.errors.canary.shape[1] - 1)))


def _cut(looks: Looks, number: int) -> Looks:
    return Looks(*(part[:, :number] for part in vars(looks).values()))


def _by_minute(counts: Ints) -> Ints:
    looks = int(60 * RATE / LOOK)
    whole = counts.shape[1] // looks * looks
    return counts[:, :whole].reshape(len(counts), -1, looks).sum(-1)


def flagger(drawn: Streams) -> Outcomes:
    """Each minute the canary's success rate must be 99 %; the fifth minute that it is not, it is taken back; after five
    steps of 10 % it is promoted."""
    return _limits(drawn, 0.01, 5, 5)


def argo(drawn: Streams) -> Outcomes:
    """The documented example: each minute 95 %, the fourth failure takes it back; ten measurements."""
    return _limits(drawn, 0.05, 4, 10)


def _limits(drawn: Streams, limit: float, failures: int, good: int) -> Outcomes:
    asked, bad = _by_minute(drawn.errors.canary), _by_minute(drawn.answers_bad)
    failed = bad > limit * asked
    back = first(np.cumsum(failed, -1).astype(float), 1 / failures)
    fine = first(np.cumsum(~failed, -1).astype(float), 1 / good)
    rolled, promoted = (back < fine) & (back < NEVER), (fine <= back) & (fine < NEVER)
    minute = np.where(rolled, back, np.where(promoted, fine, asked.shape[1] - 1))
    return Outcomes(rolled, promoted, (minute + 1) * int(60 * RATE / LOOK) - 1)


def naive(drawn: Streams) -> Outcomes:
    """A two-sample z test at each look, as if it were the only one."""
    c, cb, s, sb = (
        np.cumsum(part, -1) for part in (drawn.errors.canary, drawn.answers_bad, drawn.errors.stable, drawn.stable_bad)
    )
    pooled = (cb + sb) / (c + s)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (cb / c - sb / s) / np.sqrt(pooled * (1 - pooled) * (1 / c + 1 / s))
    back = first(np.where(z > stats.norm.isf(0.05), 1.0, 0.0), 1.0)
    return Outcomes(back < NEVER, back == NEVER, np.where(back < NEVER, back, c.shape[1] - 1))


def fixed_size(stable: float, canary: float, alpha: float) -> int:
    """Requests, half to each, from which Fisher's exact test at `alpha` finds the difference in 95 %."""

    def power(each: int) -> float:
        x1, x0 = np.arange(each + 1), np.arange(each + 1)
        high1 = x1[: int(stats.binom.ppf(1 - 1e-9, each, canary)) + 2]
        high0 = x0[: int(stats.binom.ppf(1 - 1e-9, each, stable)) + 2]
        grid1, grid0 = np.meshgrid(high1, high0, indexing="ij")
        p = stats.hypergeom.sf(grid1 - 1, 2 * each, grid1 + grid0, each)
        chance = stats.binom.pmf(grid1, each, canary) * stats.binom.pmf(grid0, each, stable)
        return float(chance[p <= alpha].sum())

    low, high = 10, 20_000
    while high - low > 5:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= 0.95 else (middle, high)
    return 2 * high


def upper(share: npt.NDArray[np.bool_]) -> float:
    """Upper bound of the 95 % interval of a share (Clopper and Pearson)."""
    hits = int(share.sum())
    return float(stats.beta.ppf(0.975, hits + 1, len(share) - hits)) if hits < len(share) else 1.0


def figures() -> list[Figure]:
    """All figures of the canary, and the table of rules side by side."""
    found: list[Figure] = []
    table = Table("stable → canary", "rule", "rolled back", "promoted", "median requests")
    rows = {
        "0 → 0": (0.0, 0.0), ".001 → .001": (0.001, 0.001), ".01 → .01": (0.01, 0.01), ".001 → .01": (0.001, 0.01),
        ".001 → .05": (0.001, 0.05), ".001 → .2": (0.001, 0.2),
    }  # fmt: skip
    for seed, (name, rates) in enumerate(rows.items()):
        drawn = streams(seed, *rates, most=14_400)
        for rule in (ours, flagger, argo, naive):
            out = rule(drawn)
            ended = out.requests[out.rolled_back | out.promoted]
            shares = (f"{out.rolled_back.mean():.3f}", f"{out.promoted.mean():.3f}")
            table.add_row(name, rule.__name__, *shares, f"{np.median(ended):.0f}" if len(ended) else "–")
        if rates[0] == rates[1]:
            out, hard = ours(drawn), rates[0] == 0.01
            limit = (0.9, 4000) if hard else (0.95, 2500)
            peer = "1,000 rollouts, all metrics"
            back = Figure(
                f"A/A at {rates[0]:g}: rolled back, upper bound", upper(out.rolled_back), "", "<=", 0.025, peer
            )
            found.append(back)
            found.append(Figure(f"A/A at {rates[0]:g}: promoted", float(out.promoted.mean()), "", ">=", limit[0]))
            median = float(np.median(out.requests[out.promoted]))
            found.append(Figure(f"A/A at {rates[0]:g}: requests, median", median, "", "<=", limit[1]))
    Console(width=100).print(table)
    for seed, stable in enumerate((0.0, 0.001, 0.01)):
        out = ours(streams(100 + seed, stable, stable + SETTINGS.error_margin))
        found.append(Figure(f"at the margin ({stable:g} → {stable + 0.01:g}): promoted", float(out.promoted.mean()), "",
                            "<=", 0.05))  # fmt: skip
    for seed, rate in enumerate((0.005, 0.01)):
        out = ours(streams(200 + seed, rate, rate, burst=5))
        found.append(
            Figure(f"A/A at {rate:g} in bursts of 5: rolled back", float(out.rolled_back.mean()), "", "<=", 0.05)
        )
    out = ours(streams(300, 0.001, 0.01, most=20_000), 20_000)
    peer = fixed_size(0.001, 0.01, HARM)
    found.append(Figure(".001 → .01: requests (N95) against an exact test of fixed size",
                        float(np.quantile(out.requests, 0.95)) / peer, "×", "<=", 2.2,
                        f"Fisher, half to each, α {HARM:g}: {peer}"))  # fmt: skip
    found += _broken("", Scrapes(), 4, 15)
    found += _scraped(Scrapes(every=5, late=2))
    out = ours(streams(500, 0.001, 0.001, times=1.2))
    until = float(np.median(out.requests[out.rolled_back])) if out.rolled_back.any() else np.inf
    shares = f"rolled back {out.rolled_back.mean():.3f}, promoted {out.promoted.mean():.3f}"
    found.append(Figure("× 1.2 latency: requests until rolled back, median", until, "", "<=", 1500, shares))
    nothing = [Look(at=float(s), weight=10, canary=Counts(), stable=Counts()) for s in range(4000)]
    held = judge(Counts(), nothing, Replayed(), SETTINGS).decision == "hold"
    found.append(Figure("no traffic: held", float(held), "", ">=", 1))
    return found


def _broken(where: str, scrapes: Scrapes, most_bad: float, most_s: float) -> list[Figure]:
    """20 % failures, 20 requests a second, a tenth of them to the canary."""
    drawn = streams(400, 0.001, 0.2, most=4000, scrapes=scrapes)
    out = ours(drawn)
    until = np.arange(drawn.errors.canary.shape[1]) <= out.look[:, None]
    answers = (drawn.answers_bad * until).sum(-1)
    began = (drawn.answers_bad > 0).argmax(-1)
    seconds = (out.look - began + 1) * LOOK / RATE
    return [
        Figure(f"20 % failures{where}: bad answers, q95", float(np.quantile(answers, 0.95)), "", "<=", most_bad),
        Figure(
            f"20 % failures{where}: seconds after the first, q95", float(np.quantile(seconds, 0.95)), "s", "<=", most_s
        ),
    ]


def _scraped(scrapes: Scrapes) -> list[Figure]:
    """The same where each pod is scraped seldom, and at a moment of its own: as safe, and later by a scrape or two."""
    where = f", scraped {scrapes.every} s apart"
    same = ours(streams(700, 0.01, 0.01, most=14_400, scrapes=scrapes))
    margin = ours(streams(701, 0.01, 0.01 + SETTINGS.error_margin, scrapes=scrapes))
    return [
        Figure(f"A/A at 0.01{where}: rolled back, upper bound", upper(same.rolled_back), "", "<=", 0.025),
        Figure(f"A/A at 0.01{where}: promoted", float(same.promoted.mean()), "", ">=", 0.9),
        Figure(f"at the margin{where}: promoted", float(margin.promoted.mean()), "", "<=", 0.05),
        *_broken(where, scrapes, 4 + 2 * scrapes.every * 0.4, 15 + 2 * scrapes.every),
    ]


def replays(differences: npt.NDArray[np.float64], drop: float) -> Figure:
    """Labelled replays until a worse model is shown to be worse: paired F1 differences, resampled."""
    rng = np.random.default_rng([SEED, 600])
    drawn = rng.choice(differences, (ROLLOUTS, 2000))
    needed = first(loss(drawn), REPLAYS) + 1
    peer = f"a model with {drop:+.3f} mAP50; median {np.median(needed):.0f}"
    return Figure("silently worse: labelled replays, q95", float(np.quantile(needed, 0.95)), "", "<=", 100, peer)


if __name__ == "__main__":
    from .figures import publish

    print(f"seed {SEED}, {ROLLOUTS} rollouts a row")
    publish("canary", figures())
