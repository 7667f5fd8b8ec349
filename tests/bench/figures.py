"""Figures are data: `{name, value, unit, op, target, peer}`, printed as a table and written as JSON."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

BENCH = Path("build/bench")


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Args:
        value: The median where there are several `samples`.
        op: How it is held against the target: `<=` or `>=`.
        peer: What it was measured against in the same run, and how.
        samples: Every single measurement.
    """

    name: str
    value: float
    unit: str
    op: str
    target: float
    peer: str = ""
    samples: tuple[float, ...] = ()

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.op == "<=" else self.value >= self.target


def median(name: str, samples: Sequence[float], unit: str, op: str, target: float, peer: str = "") -> Figure:
    """A figure that is the median of its samples."""
    return Figure(name, statistics.median(samples), unit, op, target, peer, tuple(samples))


def publish(area: str, figures: Sequence[Figure]) -> None:
    """Print the figures of an area and write `build/bench/<area>.json`. A missed target is shown, and no failure."""
    path = BENCH / f"{area}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    table = Table("figure", "value", "min – max", "target", "", "against")
    for figure in figures:
        spread = f"{min(figure.samples):.3g} – {max(figure.samples):.3g}" if len(figure.samples) > 1 else ""
        mark = "[green]met[/]" if figure.met else "[red]missed[/]"
        value, target = f"{figure.value:.3g} {figure.unit}", f"{figure.op} {figure.target:g}"
        table.add_row(figure.name, value, spread, target, mark, figure.peer)
    Console(width=140).print(table)
    print(path)
