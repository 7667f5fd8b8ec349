"""What happened over time, as SVG: requests by version, failures, and every decision where it fell."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..traffic import Sent

WIDTH, HEIGHT, LEFT, TOP = 960, 150, 34, 26
BIN_S = 2.0
COLOURS = ("var(--soft)", "var(--bar)", "#c98a1b", "#7a5cc2")


@dataclass(frozen=True)
class Mark:
    """A decision: when, in seconds since the epoch; by which step; what, in a word; and the sentence."""

    at: float
    step: str
    decision: str
    sentence: str


def timeline(sent: Sequence[Sent], marks: Sequence[Mark], began: float, ended: float) -> str:
    """Draw it, with a legend; marks are numbered from 1 on in their order."""
    versions = sorted({one.version for one in sent if one.version.startswith("v")}, key=lambda name: int(name[1:]))
    colours = dict(zip(versions, COLOURS, strict=False))
    bins = int((ended - began) / BIN_S) + 1
    answered = {version: [0] * bins for version in versions}
    failed = [0] * bins
    for one in sent:
        place = min(max(int((one.at - began) / BIN_S), 0), bins - 1)
        if one.version in answered:
            answered[one.version][place] += 1
        failed[place] += one.status != 200
    most = max((sum(counts) for counts in zip(*answered.values(), strict=True)), default=1) or 1
    wide = (WIDTH - LEFT) / bins
    parts = []
    for place in range(bins):
        low = float(TOP + HEIGHT)
        for version in versions:
            high = HEIGHT * answered[version][place] / most
            low -= high
            if high:
                parts.append(
                    f'<rect x="{LEFT + place * wide:.1f}" y="{low:.1f}" width="{wide:.2f}" height="{high:.1f}" '
                    f'fill="{colours[version]}"/>'
                )
        if failed[place]:
            parts.append(
                f'<circle cx="{LEFT + (place + 0.5) * wide:.1f}" cy="{low - 5:.1f}" r="3.5" fill="var(--bad)"/>'
            )
    return (
        f'<svg viewBox="0 0 {WIDTH} {TOP + HEIGHT + 20}" role="img" font-size="11" fill="var(--soft)" '
        f'aria-label="requests by version over time, with the decisions">{"".join(parts)}'
        f"{_marks(marks, began, ended)}{_axes(most, ended - began)}</svg>{_legend(colours)}"
    )


def _marks(marks: Sequence[Mark], began: float, ended: float) -> str:
    """Numbered lines; numbers that would touch are put into another row."""
    drawn, last = [], [-100.0, -100.0]
    for number, mark in enumerate(marks, 1):
        x = LEFT + (WIDTH - LEFT) * (mark.at - began) / (ended - began)
        row = 0 if x - last[0] >= 16 else 1
        last[row] = x
        y = 10 + 12 * row
        drawn.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 3}" y2="{TOP + HEIGHT}" stroke="var(--fore)" '
            f'stroke-opacity="0.4" stroke-dasharray="2 3"/>'
            f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill="var(--fore)">{number}</text>'
        )
    return "".join(drawn)


def _axes(most: int, seconds: float) -> str:
    base = TOP + HEIGHT
    ticks = "".join(
        f'<text x="{LEFT + (WIDTH - LEFT) * at / seconds:.1f}" y="{base + 15}" text-anchor="middle">'
        f"{at // 60}:{at % 60:02d}</text>"
        for at in range(0, int(seconds), 60)
    )
    return (
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{base}" y2="{base}" stroke="var(--line)"/>{ticks}'
        f'<text x="{LEFT - 4}" y="{TOP + 9}" text-anchor="end">{most / BIN_S:.0f}/s</text>'
    )


def _legend(colours: dict[str, str]) -> str:
    items = "".join(
        f'<span style="margin-right:1.2em"><svg width="10" height="10"><rect width="10" height="10" fill="{colour}"/>'
        f"</svg> {escape(version)}</span>"
        for version, colour in colours.items()
    )
    dot = '<svg width="10" height="10"><circle cx="5" cy="5" r="3.5" fill="var(--bad)"/></svg> failed answers'
    rest = "In between there was training, which takes every core."
    return f'<p class="muted">Requests answered by {items}{dot}. {rest}</p>'
