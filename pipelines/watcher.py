"""What `flywheel watch` starts, and when. It has no clock of its own, and knows nothing of how a run is run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..components.runtime.adapters.local.runs import LocalRuns
from ..components.runtime.adapters.local.runs import RunEnded as RunEnded
from ..components.runtime.config import Platform
from ..components.runtime.errors import FlywheelError, UserError
from ..components.runtime.ports import RunRequest
from ..components.runtime.wiring import connect

AWAY = 3
"""The exit code of a run whose backend failed or was away: that may pass."""

TRIES = 3
RETRY_S = 60.0


def queue_of(platform: Platform) -> LocalRuns:
    """The runs that are asked for on this machine.

    Raises:
        UserError: The platform has none.
    """
    runs = connect(platform).runs
    if not isinstance(runs, LocalRuns):
        raise UserError(f"runs is {platform.runs}: no other than local:/// has to be watched.", "correct runs")
    return runs


class Trigger(Protocol):
    """A reason to start a run."""

    def due(self, now: float) -> RunRequest | None:
        """The run that is to be started now. `now` is in seconds of a clock that never jumps."""
        ...


@dataclass
class Schedule:
    """A run every so many seconds, the first one at once."""

    seconds: float
    make: Callable[[], RunRequest]
    _next: float = float("-inf")

    def due(self, now: float) -> RunRequest | None:
        if now < self._next:
            return None
        self._next = now + self.seconds
        return self.make()


@dataclass
class NewData:
    """A run when the source is another than at the last run, and two looks have seen the same: nobody writes to it.

    Args:
        look: A fingerprint of the source.
        make: The run for a fingerprint.
        seconds: Between two looks.
    """

    look: Callable[[], str]
    make: Callable[[str], RunRequest]
    seconds: float
    _next: float = float("-inf")
    _seen: str = ""
    _started: str = ""

    def due(self, now: float) -> RunRequest | None:
        if now < self._next:
            return None
        self._next = now + self.seconds
        found = self.look()
        quiet, self._seen = found == self._seen, found
        if not quiet or found == self._started:
            return None
        self._started = found
        return self.make(found)


class Watcher:
    """Starts what is due, one after another.

    Args:
        runs: What was asked for. New data is asked for there too; a schedule is not, for its next turn comes anyway.
        start: Brings a run to its end. It raises nothing.
        tell: Receives a line for each thing that happens.
        clock: Seconds of a clock that never jumps.
        tries: How often a run is begun whose backend is away.
    """

    def __init__(
        self,
        runs: LocalRuns,
        start: Callable[[RunRequest], RunEnded],
        tell: Callable[[str], None],
        data: Trigger | None = None,
        schedule: Trigger | None = None,
        clock: Callable[[], float] = time.monotonic,
        tries: int = TRIES,
    ) -> None:
        self._runs, self._start, self._tell, self._data, self._schedule = runs, start, tell, data, schedule
        self._clock, self._tries = clock, tries
        self._begun: dict[str, tuple[int, float]] = {}  # by name: how often, and when it may begin again
        self._trouble = ""
        self.worst = 0
        """The highest exit code of all runs."""

    def round(self) -> None:
        """Do all that is due now."""
        for part in (self._ask_for_new_data, self._work_off, self._keep_the_schedule, self._work_off):
            try:
                part()
            except FlywheelError as error:  # said once, not at every look
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    self._tell(self._trouble)

    def _ask_for_new_data(self) -> None:
        if self._data and (request := self._data.due(self._clock())):
            self._runs.start(request)

    def _keep_the_schedule(self) -> None:
        if self._schedule and (request := self._schedule.due(self._clock())):
            self._run(request)

    def _work_off(self) -> None:
        while request := next((each for each in self._runs.waiting() if self._may_begin(each)), None):
            ended = self._run(request)
            times = self._begun.get(request.name, (0, 0.0))[0] + 1
            self._begun[request.name] = times, self._clock() + RETRY_S  # if its end cannot be entered, too
            if ended.exit_code == AWAY and times < self._tries:
                self._tell(f"{request.name} is tried again in {RETRY_S:g} s")
            else:
                self._runs.end(ended)
                del self._begun[request.name]

    def _may_begin(self, request: RunRequest) -> bool:
        return self._clock() >= self._begun.get(request.name, (0, float("-inf")))[1]

    def _run(self, request: RunRequest) -> RunEnded:
        self._tell(f"{request.name}: {request.pipeline} starts: {request.reason}")
        ended = self._start(request)
        self.worst = max(self.worst, ended.exit_code)
        how = "failed" if ended.exit_code in (1, 2, AWAY) else ended.decision
        why = ended.reason.partition("\n")[0]  # below it are the last lines of a log
        self._tell(f"{request.name}: {how}: {why}" if how else f"{request.name}: {why}")
        return ended
