"""The page of a rollout: what was decided and why, the evidence, and the traffic look by look."""

from collections.abc import Sequence
from html import escape

from ..runtime.artifacts import Check
from ..runtime.page import checks_table, page
from .evidence import Look

TITLES = {"promote": "Promoted", "hold": "Held back", "rollback": "Rolled back"}
COLOURS = {"promote": "ok", "hold": "muted", "rollback": "bad"}
WIDTH, HEIGHT = 640, 120


def render(
    decision: str, reason: str, checks: Sequence[Check], looks: Sequence[Look], facts: Sequence[tuple[str, str]]
) -> str:
    """Compose the page; everything in it is escaped here.

    Args:
        facts: Names and values for the foot of the page.
    """
    rows = "".join(f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>" for name, value in facts)
    body = [f'<p class="card"><strong class="{COLOURS[decision]}">{decision}</strong><br>{escape(reason)}</p>']
    if checks:
        body += [
            "<h2>Evidence</h2>",
            checks_table(checks),
            '<p class="muted">Value is the strength of the evidence: 100 means that what was seen is a hundred times '
            "likelier if it is so than if it is not. It may be looked at as often as one likes; the limits share out "
            "one budget of error for the whole rollout.</p>",
        ]
    if looks:
        body += ["<h2>Traffic</h2>", _traffic(looks)]
    return page(TITLES[decision], "\n".join([*body, "<h2>What was compared</h2>", f"<table>{rows}</table>"]))


def _traffic(looks: Sequence[Look]) -> str:
    """Requests of both versions between two looks as stacked bars, failures marked, in an SVG."""
    most = max(look.canary.requests + look.stable.requests for look in looks) or 1
    wide = min(WIDTH / len(looks), 16.0)
    bars = []
    for number, look in enumerate(looks):
        low = float(HEIGHT)
        for counts, colour in ((look.stable, "var(--soft)"), (look.canary, "var(--bar)")):
            high = HEIGHT * counts.requests / most
            low -= high
            bars.append(
                f'<rect x="{number * wide:.2f}" y="{low:.1f}" width="{max(wide - 0.5, 0.5):.2f}" height="{high:.1f}" '
                f'fill="{colour}"/>'
            )
            if counts.failures:
                bars.append(f'<circle cx="{(number + 0.5) * wide:.2f}" cy="{low + 4:.1f}" r="3" fill="var(--bad)"/>')
    total = [sum(counts) for counts in zip(*((x.canary.requests, x.stable.requests) for x in looks), strict=True)]
    seconds = looks[-1].at - looks[0].at
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="requests by version between two looks">'
        f"{''.join(bars)}</svg>"
        f'<p class="muted">{len(looks)} looks in {seconds:.0f} s: {total[0]} requests to the canary (coloured), '
        f"{total[1]} to the stable (grey); a dot marks failures.</p>"
    )
