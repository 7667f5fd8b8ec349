"""The page of validate: what went to quarantine, why, and what it looks like."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape

from ..runtime.artifacts import BadItem
from ..runtime.page import page

PICTURES = 30
ROWS = 300
REASONS = {
    "animated": "has several frames",
    "damaged": "cannot be decoded",
    "duplicate": "a copy of another image",
    "empty": "has no bytes",
    "label-class": "a class that data.yaml does not name",
    "label-doubled": "a box that was labelled twice",
    "label-no-area": "a box without area",
    "label-not-finite": "a label that is not finite",
    "label-outside": "a box beyond the image",
    "label-syntax": "a label line that cannot be read",
    "label-too-long": "too many labels",
    "leak": "a copy of an image of another split",
    "not-an-image": "is no image",
    "too-large": "more pixels than the limit",
    "too-small": "too few pixels",
    "truncated": "the file ends too early",
    "undecodable": "a kind of pixel that cv2 cannot read",
}


def render(
    total: int, rejected: Mapping[str, int], bad: Sequence[BadItem], draw: Callable[[BadItem], bytes | None]
) -> str:
    """Render the page.

    Args:
        total: Images that were looked at.
        rejected: Count by reason.
        bad: The items in quarantine; names and sentences are hostile text.
        draw: Gives a small JPEG of an item, or None.
    """
    if not bad:
        return page("Data check", f'<p class="ok">All {total} images are fit to be used.</p>')
    most = max(rejected.values())
    rows = "".join(
        f'<tr><td>{escape(REASONS.get(reason, reason))}<br><code class="muted">{escape(reason)}</code></td>'
        f'<td class="number">{count}</td>'
        f'<td style="width:12rem"><span class="bar bad" style="width:{100 * count / most:.0f}%"></span></td></tr>'
        for reason, count in sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    )
    shown = "".join(_figure(item, draw(item)) for item in _mixed(bad)[:PICTURES])
    listed = "".join(
        f"<tr><td>{escape(item.path)}</td><td><code>{escape(item.reason)}</code></td><td>{escape(item.detail)}</td></tr>"
        for item in bad[:ROWS]
    )
    more = f'<p class="muted">and {len(bad) - ROWS} more, in the quarantine list of the CleanBatch</p>'
    verb = "is" if len(bad) == 1 else "are"
    parts = (
        f"<p>{total - len(bad)} of {total} images are fit to be used. ",
        f'<span class="bad">{len(bad)} {verb} in quarantine</span> ({len(bad) / total:.1%}).</p>',
        f"<h2>Why</h2><table>{rows}</table>",
        f'<h2>Pictures</h2><div class="grid">{shown}</div>',
        "<h2>All in quarantine</h2>",
        f"<table><tr><th>File</th><th>Reason</th><th>What was found</th></tr>{listed}</table>",
        more if len(bad) > ROWS else "",
    )
    return page("Data check", "".join(parts))


def _mixed(bad: Sequence[BadItem]) -> list[BadItem]:
    """One of each reason first, then the second of each: every reason gets a picture."""
    turn: dict[str, int] = {}
    order: list[tuple[int, str, int, BadItem]] = []
    for item in bad:
        turn[item.reason] = turn.get(item.reason, 0) + 1
        order.append((turn[item.reason], item.reason, len(order), item))
    return [entry[3] for entry in sorted(order, key=lambda entry: entry[:3])]


def _figure(item: BadItem, picture: bytes | None) -> str:
    name = escape(item.path, quote=True)
    drawn = '<p class="muted">cannot be drawn</p>'
    if picture is not None:
        drawn = f'<img alt="{name}" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    caption = f'{name}<br><span class="bad">{escape(item.detail)}</span>'
    return f'<figure class="card">{drawn}<figcaption>{caption}</figcaption></figure>'
