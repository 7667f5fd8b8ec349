"""`flywheel history`: who served an endpoint when, why, on which data, and what the gate had said of it."""

import re
import time
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..components.runtime.artifacts import EvalReport, Release
from ..components.runtime.config import Platform
from ..components.runtime.errors import Corrupt, PlatformError, UserError
from ..components.runtime.ledger import Entry, history
from ..components.runtime.manifests import find
from ..components.runtime.ports import Store
from ..components.runtime.wiring import connect


def moment(text: str) -> float:
    """A time that a person gave, in seconds since the epoch.

    Args:
        text: `2026-11-21 10:00`, local unless it names a zone; or nine or more digits: seconds since the epoch.

    Raises:
        UserError: It is no time.
    """
    try:
        if re.fullmatch(r"\d{9,}(\.\d*)?", text.strip()):
            at = float(text)
            datetime.fromtimestamp(at)
            return at
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(f"--at {text} is no time.", "--at '2026-11-21 10:00', or with a zone: +01:00") from error


def serving_at(entries: list[Entry], at: float) -> Entry | None:
    """The entry that held at a time. By generation: clocks jump, generations do not."""
    return next((entry for entry in reversed(entries) if entry.at <= at), None)


def told(endpoint: str, at: str, platform: Platform) -> dict[str, Any]:
    """All who served an endpoint, oldest first; or who did at one time.

    Args:
        at: See `moment`; empty for all.

    Raises:
        UserError: `at` is no time.
        Corrupt: The ledger is damaged.
    """
    when = moment(at) if at else None
    store = connect(platform).store
    entries = history(store, endpoint)
    until = [entry.at for entry in entries[1:]] + [None]
    chosen = entries if when is None else [entry for entry in [serving_at(entries, when)] if entry]
    served = [_row(store, entry, until[entries.index(entry)]) for entry in chosen]
    return {"endpoint": endpoint, "at": when, "served": served}


def _row(store: Store, entry: Entry, until: float | None) -> dict[str, Any]:
    release = entry.release
    return {
        "generation": entry.generation,
        "from": entry.at,
        "until": until,
        "stable": entry.stable,
        "weights": entry.weights,
        "release": f"{release.model} {release.version}" if release else None,
        "package": release.package if release else None,
        "dataset": release.dataset if release else None,
        "gate": _gate(store, release) if release else None,
        "by": entry.by,
        "reason": entry.reason,
    }


def _gate(store: Store, release: Release) -> dict[str, Any]:
    """What the gate said of a release; a report that the store has lost is shown as such."""
    try:
        report = find(store, release.report, EvalReport)
    except Corrupt as error:
        return {"report": release.report, "decision": "damaged", "reason": error.message, "map50": None}
    except PlatformError as error:
        return {"report": release.report, "decision": "lost", "reason": error.message, "map50": None}
    score = report.challenger_scores.map50
    return {"report": report.id, "decision": report.decision, "reason": report.reason, "map50": score}


def show(found: dict[str, Any]) -> None:
    """Print the answer of `told` for a person."""
    console = Console(highlight=False, soft_wrap=True)
    endpoint, at, served = found["endpoint"], found["at"], found["served"]
    if at is not None and not any(row["stable"] for row in served):
        console.print(f"nobody served {endpoint} at {_shown(at)}")
    elif not served:
        console.print(f"nobody has served {endpoint} yet; next: flywheel run --data path/to/data.yaml")
    if not served:
        return
    for row in served:
        gate = row["gate"]
        score = f", mAP50 {gate['map50']:.3f}" if gate and gate["map50"] is not None else ""
        trained = f"{row['release']}, data {row['dataset']}, gate {gate['decision']}{score}" if gate else "no champion"
        until = _shown(row["until"]) if row["until"] else "now"
        split = ", ".join(f"{name} {weight} %" for name, weight in row["weights"].items()) or "nobody"
        console.print(f"[bold]{_shown(row['from'])}[/] to {until}: [bold]{split}[/]; {trained}")
        console.print(f"    by {escape(row['by'])}: {escape(row['reason'])}")


def _shown(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
