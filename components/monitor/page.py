"""The page of a monitor: what was decided and why, each feature's two distributions, and images from both sides."""

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from ..recipes.detection.draw import to_jpeg_uri
from ..recipes.detection.reference import Reference
from ..recipes.detection.window import Window
from ..runtime.artifacts import Drift
from ..runtime.page import page
from .judge import Decision

COLOURS: dict[Decision, str] = {"quiet": "ok", "alert": "bad", "retrain": "bad", "undecided": "muted"}
TITLES: dict[Decision, str] = {
    "quiet": "Nothing has changed",
    "alert": "The requests have changed",
    "retrain": "The requests have changed, and it hurts",
    "undecided": "Nothing is known",
}
BINS, WIDTH, HEIGHT = 24, 220, 70
Floats = npt.NDArray[np.float64]


def render(
    decision: Decision,
    reason: str,
    numbers: Sequence[tuple[str, str]],
    tests: Sequence[Drift],
    reference: Reference | None,
    window: Window | None,
    examples: tuple[Sequence[npt.NDArray[np.uint8]], Sequence[npt.NDArray[np.uint8]]],
) -> str:
    """Compose the page; everything in it is escaped here.

    Args:
        numbers: Names and values for a person.
        examples: Images of the holdout, and of the window.
    """
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in numbers)
    body = [
        f'<p class="card"><strong class="{COLOURS[decision]}">{decision}</strong><br>{escape(reason)}</p>',
        f"<table>{rows}</table>",
    ]
    if reference is not None and window is not None and tests:
        body += ["<h2>Distributions</h2>", LEGEND, _features(tests, reference, window)]
    for name, images in zip(("The holdout, for example", "The requests, for example"), examples, strict=True):
        if images:
            tiles = "".join(f'<img src="{to_jpeg_uri(image, 200)}" alt="" width="200">' for image in images)
            body += [f"<h2>{name}</h2>", f'<div class="grid">{tiles}</div>']
    return page(TITLES[decision], "\n".join(body))


LEGEND = (
    '<p class="muted">Grey: the holdout that the champion was judged on. Coloured: the requests. Marked: different '
    "beyond chance, after the correction for many tests.</p>"
)


def _features(tests: Sequence[Drift], reference: Reference, window: Window) -> str:
    """A card for each feature, those that drifted first."""
    names = reference.feature_names.tolist()
    cards = []
    for test in sorted(tests, key=lambda test: (not test.drifted, test.p_value)):
        picture = ""
        if test.name in names:
            column = names.index(test.name)
            sides = (side.features[:, column].astype(np.float64) for side in (reference, window))
            picture = _histograms(*(side[np.isfinite(side)] for side in sides))
        mark = ' <strong class="bad">changed</strong>' if test.drifted else ""
        cards.append(
            f'<div class="card"><strong>{escape(test.name)}</strong>{mark}{picture}'
            f'<div class="muted">{escape(test.test)} {test.statistic:.3f}, p {test.p_value:.2g}</div></div>'
        )
    return f'<div class="grid">{"".join(cards)}</div>'


def _histograms(before: Floats, now: Floats) -> str:
    """Two distributions over each other, as an SVG."""
    both = np.concatenate([before, now])
    if not len(both):
        return '<p class="muted">no box in any image</p>'
    low, high = np.quantile(both, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = [np.histogram(side.clip(low, high), edges)[0] / max(len(side), 1) for side in (before, now)]
    most = max(share.max() for share in shares) or 1
    bars = "".join(
        f'<rect x="{number * WIDTH / BINS:.1f}" y="{HEIGHT - HEIGHT * value / most:.1f}" '
        f'width="{WIDTH / BINS:.1f}" height="{HEIGHT * value / most:.1f}" fill="{colour}" fill-opacity="0.55"/>'
        for share, colour in zip(shares, ("var(--soft)", "var(--bar)"), strict=True)
        for number, value in enumerate(share)
        if value
    )
    label = 'font-size="10" fill="var(--soft)"'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 14}" role="img" aria-label="two distributions">{bars}'
        f'<text x="0" y="{HEIGHT + 12}" {label}>{low:.3g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 12}" text-anchor="end" {label}>{high:.3g}</text></svg>'
    )
