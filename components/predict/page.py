"""The page of a batch: what was seen how often and how surely, examples, and what could not be read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from ..runtime.page import page

BINS = 20
SHOWN = 100
"""Images that cannot be read, on the page; all of them are rows of the predictions."""


@dataclass
class Seen:
    """What is counted over all rows.

    Args:
        boxes: By class.
        with_class: Images in which a class was seen.
        scores: By bin of 1 / `BINS`.
        unread: Paths of images that cannot be read, with the reason; the first ones.
    """

    images: int = 0
    bad: int = 0
    empty: int = 0
    boxes: Counter[str] = field(default_factory=Counter)
    with_class: Counter[str] = field(default_factory=Counter)
    scores: Counter[int] = field(default_factory=Counter)
    unread: list[tuple[str, str]] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row."""
        self.images += 1
        if row["error"] is not None:
            self.bad += 1
            if len(self.unread) < SHOWN:
                self.unread.append((row["path"], row["error"]))
            return
        self.empty += not row["labels"]
        self.boxes.update(row["labels"])
        self.with_class.update(set(row["labels"]))
        self.scores.update(min(int(score * BINS), BINS - 1) for score in row["scores"])


class Example(NamedTuple):
    """An image with its boxes: why it is shown, its path, and the picture as a data URI."""

    why: str
    path: str
    picture: str


def render(seen: Seen, names: Sequence[str], facts: Sequence[tuple[str, str]], examples: Sequence[Example]) -> str:
    """Compose the page; everything in it is escaped here.

    Args:
        facts: Names and values for the foot of the page.
    """
    unread = f'<br><span class="bad">{seen.bad} cannot be read ({seen.bad / seen.images:.1%}).</span>'
    body = [
        f'<p class="card">{seen.images} images, {seen.boxes.total()} detections; in {seen.empty} images nothing.'
        f"{unread if seen.bad else ''}</p>",
        f"<h2>Classes</h2>\n{_classes(seen, names)}",
        f"<h2>Scores</h2>\n{_scores(seen)}",
    ]
    if examples:
        shown = "".join(_figure(example) for example in examples)
        body.append(f'<h2>The surest of each class</h2>\n<div class="grid">{shown}</div>')
    if seen.bad:
        rows = "".join(f"<tr><td>{escape(path)}</td><td>{escape(why)}</td></tr>" for path, why in seen.unread)
        more = f'<p class="muted">and {seen.bad - SHOWN} more</p>' if seen.bad > SHOWN else ""
        body.append(f"<h2>Not read</h2>\n<table><tr><th>Image</th><th>Why</th></tr>{rows}</table>{more}")
    rows = "".join(f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>" for name, value in facts)
    return page("Predictions", "\n".join([*body, f"<h2>What was asked</h2>\n<table>{rows}</table>"]))


def _classes(seen: Seen, names: Sequence[str]) -> str:
    most = max(seen.boxes.values(), default=0)
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="number">{seen.boxes[name]}</td>'
        f'<td class="number">{seen.with_class[name]}</td>{_bar(seen.boxes[name], most)}</tr>'
        for name in sorted(names, key=lambda name: -seen.boxes[name])
    )
    head = '<tr><th>Class</th><th class="number">Detections</th><th class="number">Images</th><th></th></tr>'
    return f"<table>{head}{rows}</table>"


def _scores(seen: Seen) -> str:
    if not seen.scores:
        return '<p class="muted">nothing was detected</p>'
    most = max(seen.scores.values())
    rows = "".join(
        f"<tr><td>{number / BINS:.2f} to {(number + 1) / BINS:.2f}</td>"
        f'<td class="number">{seen.scores[number]}</td>{_bar(seen.scores[number], most)}</tr>'
        for number in range(min(seen.scores), BINS)
    )
    return f'<table><tr><th>Score</th><th class="number">Detections</th><th></th></tr>{rows}</table>'


def _bar(value: int, most: int) -> str:
    bar = f'<span class="bar" style="width:{100 * value / most:.1f}%"></span>' if value else ""
    return f'<td style="min-width:5rem;width:100%">{bar}</td>'


def _figure(example: Example) -> str:
    alt = escape(f"{example.path}: {example.why}", quote=True)
    caption = f'{escape(example.why)}<br><small class="muted">{escape(example.path)}</small>'
    return (
        f'<figure class="card"><img src="{example.picture}" alt="{alt}" style="width:100%">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )
