"""`flywheel schedule`: runs at their times, kept by Kubeflow Pipelines."""

import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..components.runtime.config import Platform
from ..components.runtime.ports import Schedule
from ..components.runtime.wiring import connect
from .submitting import readable, wide


def create(name: str, pipeline: str, parameters: dict[str, Any], cron: str, platform: Platform) -> tuple[Schedule, str]:
    """Have a schedule as it is wanted; give it as it is there, and what was done: created, replaced or unchanged.

    Args:
        parameters: Checked ones, all of them.

    Raises:
        UserError: The cron is none, or the source is on this machine.
    """
    readable(parameters, platform)
    schedules = connect(platform).schedules
    how = schedules.put(Schedule(name=name, pipeline=pipeline, parameters=parameters, cron=cron), _say)
    return next(each for each in schedules.list() if each.name == name), how


def listed(platform: Platform) -> list[Schedule]:
    """All schedules, by name."""
    return sorted(connect(platform).schedules.list(), key=lambda each: each.name)


def delete(name: str, platform: Platform) -> None:
    """Delete a schedule once its run has ended."""
    connect(platform).schedules.delete(name, _say)


def show(found: list[Schedule]) -> None:
    """Print schedules for a person."""
    table = Table(box=None, pad_edge=False)
    for column in ("schedule", "pipeline", "cron", "runs", "state"):
        table.add_column(column, overflow="fold")
    for each in found:
        table.add_row(escape(each.name), each.pipeline, each.cron, each.says, "paused" if each.paused else "at work")
    wide(Console(highlight=False)).print(table if found else "no schedules yet; next: flywheel schedule create --help")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
