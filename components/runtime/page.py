"""One look for every page: self-contained, no JavaScript (the KFP dashboard runs none), for phones and the dark."""

from collections.abc import Sequence
from html import escape

from .artifacts import Check

SIGNS = {"pass": ("ok", "✓"), "fail": ("bad", "✗"), "undecided": ("muted", "?")}
STYLE = """
:root { color-scheme: light dark; --back: #fff; --fore: #1c2024; --soft: #687076; --line: #dfe3e6; --card: #f8f9fa;
  --ok: #18794e; --bad: #c62a2f; --bar: #3b82c4; }
@media (prefers-color-scheme: dark) { :root { --back: #16181a; --fore: #ecedee; --soft: #9ba1a6; --line: #34393d;
  --card: #1f2225; --ok: #4cc38a; --bad: #ff8589; --bar: #5aa2e6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 62rem; background: var(--back); color: var(--fore);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .3em 0; }
h2 { font-size: 1.15rem; margin: 1.8em 0 .5em; }
a { color: var(--bar); }
img, svg { max-width: 100%; height: auto; border-radius: .3rem; }
code, pre { font: .9em ui-monospace, monospace; }
pre { overflow-x: auto; }
table { display: block; overflow-x: auto; border-collapse: collapse; overflow-wrap: normal; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.ok { color: var(--ok); } .bad { color: var(--bad); } .muted { color: var(--soft); }
.card { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 100%), 1fr)); }
.bar { display: block; height: .5rem; margin-top: .5rem; min-width: 1px; background: var(--bar); border-radius: .3rem; }
.bar.ok { background: var(--ok); } .bar.bad { background: var(--bad); } .bar.muted { background: var(--soft); }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document.

    Args:
        title: Plain text; it is escaped, and is the heading too.
        body: HTML. Whatever came from outside was escaped by the caller. Classes at hand: `ok`, `bad` and `muted` for
            text; `card` is a box, `grid` puts cards side by side; `bar` is a horizontal bar whose width is the caller's
            (`style="width:40%"`); `number` aligns a table cell.
    """
    name = escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def checks_table(checks: Sequence[Check]) -> str:
    """The checks of a decision: sign, name, value and limit, and the sentence below."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    bare = 'style="border:0;padding-bottom:0"'
    rows = "".join(
        f'<tr><td {bare} class="{SIGNS[check.outcome][0]}"><strong>{SIGNS[check.outcome][1]}</strong></td>'
        f"<td {bare}><strong>{escape(check.name)}</strong></td>"
        f'<td {bare} class="number">{number(check.value)}</td><td {bare} class="number">{number(check.limit)}</td></tr>'
        f'<tr><td></td><td colspan="3" class="muted">{escape(check.sentence)}</td></tr>'
        for check in checks
    )
    head = '<tr><th></th><th>Check</th><th class="number">Value</th><th class="number">Limit</th></tr>'
    return f"<table>{head}{rows}</table>"
