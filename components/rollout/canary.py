"""A release beside the champion: ready, asked in the shadow, given a growing share of the traffic, and judged.

Killed, its lease runs out and the reconciler takes the canary back; run again, it goes on from its diary.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..runtime.artifacts import Release
from ..runtime.config import Rollout
from ..runtime.errors import AlreadyExists, FlywheelError, PlatformError
from ..runtime.ports import RECONCILER, Counts, Serving, Store, Telemetry
from .claim import LEASE_S, NAP_S, Claim, Lost
from .diary import Begun, Diary, Ended
from .evidence import Look, Replayed, Verdict, judge, since
from .split import not_copied, wrong_split

UNREADY_S = 10.0
"""Seconds that a canary which was ready may be away; meanwhile it has no traffic."""
FALLS = 3
"""How often it may be away, less one."""
DIVIDED_S = 10.0
"""Seconds that a gateway may need to divide the traffic anew."""
IDLE_S = 60.0
"""Seconds without a request after which somebody should be told: Prometheus may bring news each half a minute only."""


@dataclass(frozen=True)
class Means:
    """All that a rollout needs of the world.

    Args:
        telemetry: Opens it when it is first needed; without it no canary is tried.
        ask: Is handed a version's own address, and gives what is wrong with its golden answers, or nothing.
        replay: Is handed the addresses of canary and stable, and something to call now and then.
        answered_by: Asks the public address once, and gives the version that answered; empty for none.
        tell: Receives a line for whoever watches.
        clock: Seconds since the epoch.
        pause: Sleeps.
    """

    store: Store
    serving: Serving
    telemetry: Callable[[], Telemetry] | None
    ask: Callable[[str], str]
    replay: Callable[[str, str, Callable[[], None]], Replayed]
    answered_by: Callable[[], str]
    tell: Callable[[str], None]
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep


class Canary:
    """One rollout at work."""

    def __init__(self, means: Means, release: Release, champion: Release, settings: Rollout, run: str) -> None:
        self.means, self.settings, self.run = means, settings, run
        self.diary = Diary(means.store, settings.endpoint, release, champion, run)
        self.claim = Claim(
            means.store, means.serving, settings.endpoint, release, champion, run, means.clock, means.pause
        )
        self.version, self.stable = self.claim.version, self.claim.stable
        self._silent = ""

    def roll(self) -> Ended:
        """Compare the two, and act.

        Raises:
            PlatformError: Nothing serves the endpoint, or the store or the endpoint is away. The canary is then taken
                back at once if that is possible, else when its lease runs out.
        """
        if self.diary.ended:
            return self.diary.ended
        try:
            found = self._decided() or self._compare()
            if found.decision == "promote":
                self.claim.promote(f"{self.version} was promoted: {found.reason}")
            else:
                word = "rolled back" if found.decision == "rollback" else "held back"
                self.claim.withdraw(f"{self.version} was {word}: {found.reason}")
        except Lost as lost:
            return self.diary.end(explained(lost, self.claim, self.run))
        except FlywheelError as error:
            with contextlib.suppress(FlywheelError, Lost):  # the first error is the one to be told
                self.claim.withdraw(f"{self.version} was taken back: {error.message}")
            raise
        assert found.decision != "go"
        return self.diary.end(
            Ended(run=self.run, decision=found.decision, verdict="canary", reason=found.reason, checks=found.checks)
        )

    def _decided(self) -> Verdict | None:
        """What a process before this one had decided against the canary, and was killed before it could act on."""
        begun, replayed = self.diary.begun, self.diary.replayed
        if begun is None or replayed is None:
            return None
        found = judge(begun.stable, self.diary.looks(), replayed, self.settings)
        return found if found.decision in ("rollback", "hold") else None

    def _compare(self) -> Verdict:
        self.claim.enter(self.means.tell)
        if problem := self._wait_until_ready():
            return Verdict("rollback", problem, 0, ())
        counts = self._counts() or {}
        begun = self.diary.begin(Begun(at=self.means.clock(), stable=counts.get(self.stable, Counts())))
        replayed = self.diary.replayed
        if replayed is None:
            self.means.tell(f"{self.version} answers as its trainer saw; recorded images are asked in the shadow")
            seen = self.means.serving.observe(self.settings.endpoint)
            stable = seen[self.stable].url if self.stable in seen else ""
            replayed = self.diary.replay(self.means.replay(seen[self.version].url, stable, self.claim.renew))
        return self._look_on(begun, replayed)

    def _wait_until_ready(self) -> str:
        """Wait until the canary answers truly; what is wrong, if it does not in time.

        Raises:
            PlatformError: Nothing serves the endpoint.
        """
        endpoint, limit = self.settings.endpoint, self.settings.ready_timeout_s
        deadline, told = time.monotonic() + limit, ""
        while True:
            seen = self.means.serving.observe(endpoint).get(self.version)
            reason = self.means.ask(seen.url) if seen and seen.ready else (seen.reason if seen else "") or "starting"
            if not reason:
                return ""
            if reason != told and reason != "starting":  # a restart hides why it failed
                told = reason
                self.means.tell(f"{self.version}: {reason}")
            if time.monotonic() > deadline:
                break
            self.claim.renew()
            self.means.pause(NAP_S)
        if not self.means.serving.url(endpoint):
            raise PlatformError(
                f"nothing serves endpoint {endpoint}.", "flywheel serve; then run the same command again"
            )
        return f"{self.version} did not answer within {limit:g} s: {told or 'starting'}"

    def _look_on(self, begun: Begun, replayed: Replayed) -> Verdict:
        looks, away, falls, idle = self.diary.looks(), 0.0, 0, 0.0
        last, share = self._counts(), None
        while True:
            found = judge(begun.stable, looks, replayed, self.settings)
            if found.decision != "go":
                return found
            if found.weight != share and not away:
                share = found.weight
                self.claim.share(share, shadow=share == 0)
                what = f"{share} % of the traffic" if share else "a copy of each request, and nobody gets its answers"
                self.means.tell(f"{self.version} has {what}: {found.reason}")
                if problem := self._wait_until_divided(share):
                    return Verdict("hold", problem, share, found.checks)
            self._pause()
            seen = self.means.serving.observe(self.settings.endpoint).get(self.version)
            away = 0.0 if seen and seen.ready else away + self.settings.look_s
            if away:
                why = (seen.reason if seen else "") or "it is not ready"
                falls += share is not None
                if away >= UNREADY_S or falls >= FALLS:
                    return Verdict("rollback", f"{self.version} does not stay up: {why}", share or 0, found.checks)
                if share is not None:
                    share = None
                    self.claim.share(0)
                    self.means.tell(f"{self.version} is away, and {self.stable} has all of the traffic: {why}")
            counts = self._counts()
            canary, stable = (self._since(name, counts, last) for name in (self.version, self.stable))
            at, shadow = self.means.clock(), share == 0
            look = Look(at=at, weight=share or 0, shadow=shadow, canary=canary, stable=stable)
            idle = 0.0 if canary.requests + stable.requests else idle + self.settings.look_s
            if counts is not None and IDLE_S <= idle < IDLE_S + self.settings.look_s:
                self.means.tell("no requests come, so nothing can be shown; next: flywheel traffic FOLDER")
            last = (last or {}) | counts if counts is not None else last
            try:
                self.diary.look(len(looks) + 1, look)
            except AlreadyExists as error:
                state = self.means.serving.read(self.settings.endpoint)
                raise Lost(state, "another process is at work on this very rollout.") from error
            looks.append(look)
            if problem := not_copied(looks):
                return Verdict("hold", problem, 0, found.checks)

    def _wait_until_divided(self, weight: int) -> str:
        """Wait until the answers show the share that was asked for; what is wrong, if they do not in time."""
        deadline = time.monotonic() + DIVIDED_S
        while problem := wrong_split(self.means.answered_by, self.version, weight):
            if time.monotonic() > deadline:
                return f"the traffic is not divided as it should be: {problem}."
            self.claim.renew()
            self.means.pause(NAP_S)
        return ""

    def _since(self, name: str, counts: dict[str, Counts] | None, last: dict[str, Counts] | None) -> Counts:
        """What a version was asked since the last look; nothing where one of the two is not known.

        A canary that nobody has counted yet begins at zero; a stable version has a past.
        """
        if counts is None or last is None or name not in counts or (name == self.stable and name not in last):
            return Counts()
        return since(counts[name], last.get(name, Counts()))

    def _counts(self) -> dict[str, Counts] | None:
        """Cumulative counts; none when telemetry is silent, which decides nothing."""
        assert self.means.telemetry is not None, "looked at before a canary is tried"
        try:
            found = self.means.telemetry().counts(self.settings.endpoint)
        except PlatformError as error:
            if self._silent != error.message:
                self._silent = error.message
                self.means.tell(f"telemetry is silent: {error.message}")
            return None
        self._silent = ""
        return found

    def _pause(self) -> None:
        """Sleep until the next look, awake enough for the lease."""
        naps = math.ceil(self.settings.look_s / (LEASE_S / 10))
        for _ in range(naps):
            self.claim.renew()
            self.means.pause(self.settings.look_s / naps)
        self.claim.renew()


def explained(lost: Lost, claim: Claim, run: str) -> Ended:
    """Who has the endpoint now, and what that makes of the rollout that lost it.

    The verdict is `hand` where a person decided, `changed` where nothing was decided about this release.
    """
    state, now, version = lost.state, lost.state.champion, claim.version
    unchanged = Ended(run=run, decision="hold", verdict="changed", reason=state.reason)
    if now is not None and now.id == claim.release.id:
        why = f"{version} was promoted by {state.by}: {state.reason}"
        return Ended(run=run, decision="promote", verdict="hand", reason=why)
    if now is None or now.id != claim.champion.id:
        name = f"{now.model} version {now.version}" if now else "none"
        return unchanged.but(reason=f"the champion was {claim.stable} when this rollout began and is {name} now.")
    if state.edited:
        return unchanged.but(reason=f"{state.edited}; undo it, or decide with flywheel promote or flywheel rollback.")
    if lost.problem or version in state.versions:
        return unchanged.but(reason=lost.problem or f"run {state.by} has the endpoint now.")
    if state.by == RECONCILER:
        return unchanged
    why = f"{version} was taken back by {state.by}: {state.reason}"
    return Ended(run=run, decision="rollback", verdict="hand", reason=why)
