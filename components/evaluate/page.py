"""The page of a gate: the decision and why, the numbers behind it, and the worst mistakes on their images."""

from collections.abc import Callable, Sequence
from html import escape

from ..recipes.detection.draw import draw, to_jpeg_uri
from ..recipes.detection.mistakes import Mistakes
from ..recipes.detection.predict import Detections, Image
from ..runtime.artifacts import Check, Decision, OldHoldout, Sample, Scores
from ..runtime.page import checks_table, page

TITLES: dict[Decision, str] = {
    "pass": "Passed the gate",
    "fail": "Failed the gate",
    "undecided": "The gate is undecided",
}
COLOURS: dict[Decision, str] = {"pass": "ok", "fail": "bad", "undecided": "muted"}
SIGNS: dict[Decision, str] = {"pass": "✓", "fail": "✗", "undecided": "?"}
WIDTH = 320


def render(
    decision: Decision,
    reason: str,
    checks: Sequence[Check],
    challenger: Scores,
    champion: Scores | None,
    gallery: str,
    facts: Sequence[tuple[str, str]],
    older: Sequence[OldHoldout] = (),
) -> str:
    """Compose the page; everything in it is escaped here.

    Args:
        gallery: HTML of `mistakes_on`.
        facts: Names and values for the foot of the page.
        older: The same pair on holdouts that the data inherited.
    """
    rows = "".join(f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>" for name, value in facts)
    verdict = f'<strong class="{COLOURS[decision]}">{SIGNS[decision]} {decision}</strong>'
    both = f"<h2>New and older holdouts</h2>\n{_holdouts(challenger, champion, older)}\n" if older else ""
    return page(
        TITLES[decision],
        f'<p class="card">{verdict}<br>{escape(reason)}</p>\n'
        f"<h2>Checks</h2>\n{checks_table(checks)}\n{both}"
        f"<h2>Accuracy on the {'new ' if older else ''}holdout</h2>\n{_accuracy(challenger, champion)}\n"
        f"<h2>Worst mistakes</h2>\n{gallery}\n<h2>What was judged</h2>\n<table>{rows}</table>",
    )


def _holdouts(challenger: Scores, champion: Scores | None, older: Sequence[OldHoldout]) -> str:
    rows = _line("New images", challenger.map50, champion.map50 if champion else None, bool(champion))
    for old in older:
        theirs = old.champion_scores
        name = f"{old.dataset}, {old.images} images"
        rows += _line(name, old.challenger_scores.map50, theirs.map50 if theirs else None, bool(champion))
    return f"<table>{_head('mAP50', bool(champion))}{rows}</table>"


def _accuracy(challenger: Scores, champion: Scores | None) -> str:
    def of(field: str) -> tuple[float | None, float | None]:
        return getattr(challenger, field), getattr(champion, field) if champion else None

    two = bool(champion)
    theirs = champion.class_map50 if champion else {}
    rows = _line("mAP50", *of("map50"), two) + _line("mAP50-95", *of("map"), two)
    rows += f'<tr><th colspan="{4 if two else 3}">AP50 of each class</th></tr>'
    rows += "".join(_line(name, value, theirs.get(name), two) for name, value in challenger.class_map50.items())
    return f"<table>{_head('', two)}{rows}</table>"


def _head(what: str, two: bool) -> str:
    champion = '<th class="number">Champion</th>' if two else ""
    return f'<tr><th>{what}</th><th class="number">New</th>{champion}<th></th></tr>'


def _line(name: str, mine: float | None, theirs: float | None, two: bool) -> str:
    bars = _bar(mine, "") + (_bar(theirs, "muted") if two else "")
    other = f'<td class="number muted">{_share(theirs)}</td>' if two else ""
    cells = f'<td class="number">{_share(mine)}</td>{other}<td style="min-width:5rem;width:100%">{bars}</td>'
    return f"<tr><th>{escape(name)}</th>{cells}</tr>"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _bar(value: float | None, colour: str) -> str:
    if value is None:
        return ""
    return f'<span class="bar {colour}" style="width:{100 * value:.1f}%;margin:.2rem 0"></span>'


def mistakes_on(
    mistakes: Sequence[Mistakes],
    samples: Sequence[Sample],
    predictions: Sequence[Detections],
    names: Sequence[str],
    read: Callable[[Sample], Image],
) -> str:
    """Draw mistakes on their images, as HTML.

    Args:
        samples: The holdout.
        predictions: One a sample, at the confidence of serving.
        read: Gives the decoded image of a sample.
    """
    if not mistakes:
        return "<p>None: at the confidence of serving every box was found, and nothing else.</p>"
    figures = ""
    for wrong in mistakes:
        sample = samples[wrong.image]
        drawn = draw(read(sample), predictions[wrong.image], names, sample.boxes, wrong.right)
        said = escape(_said(wrong, names))
        figures += (
            f'<figure class="card"><img src="{to_jpeg_uri(drawn, WIDTH)}" alt="{said}" style="width:100%">'
            f'<figcaption>{said}<br><small class="muted">{escape(sample.path)}</small></figcaption></figure>\n'
        )
    legend = (
        '<p class="muted">Green and dashed: what is there. With a score: what the model says, blue where it is right '
        "and red where it is wrong. Ordered by cost: 1 for each box that is missed, and the score of each wrong "
        "detection.</p>"
    )
    wide = "grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr))"
    return f'{legend}\n<div class="grid" style="{wide}">\n{figures}</div>'


def _said(wrong: Mistakes, names: Sequence[str], most: int = 4) -> str:
    parts = [f"took {names[truth]} for {names[kind]} ({score:.2f})" for truth, kind, score in wrong.taken]
    parts += [f"missed {names[kind]}" for kind in wrong.missed]
    parts += [f"false alarm {names[kind]} ({score:.2f})" for kind, score in wrong.false_alarms]
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more
