"""The demo's page: what happened from the first file to the last answer, in one file that needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...components.recipes.detection.draw import draw, to_jpeg_uri
from ...components.recipes.detection.predict import decode
from ...components.runtime.artifacts import (
    BadItem,
    CleanBatch,
    DatasetVersion,
    Epoch,
    EvalReport,
    ModelPackage,
    RawBatch,
    Release,
)
from ...components.runtime.blobs import get_blob
from ...components.runtime.errors import UserError
from ...components.runtime.manifests import find
from ...components.runtime.page import page
from ...components.runtime.ports import EndpointState
from ...components.runtime.records import from_lines
from ...components.runtime.step import StepRecord
from ...components.runtime.wiring import World

SHOWN = 12


@dataclass(frozen=True)
class Asked:
    """The questions to the endpoint: pictures, their bytes, the first answer for each, and every answer's seconds."""

    images: list[Path]
    contents: list[bytes]
    answers: list[Any]
    seconds: list[float]
    names: tuple[str, ...]
    median_ms: float


@dataclass(frozen=True)
class Story:
    """Everything that the page tells, found by walking the lineage of the served release back to its files."""

    state: EndpointState
    release: Release
    report: EvalReport
    package: ModelPackage
    dataset: DatasetVersion
    clean: CleanBatch
    raw: RawBatch
    bad: list[tuple[BadItem, str]]
    steps: Sequence[StepRecord]
    asked: Asked

    @classmethod
    def of(
        cls, world: World, state: EndpointState, release: Release, steps: Sequence[StepRecord], asked: Asked
    ) -> "Story":
        store = world.store
        report = find(store, release.report, EvalReport)
        package = find(store, release.package, ModelPackage)
        dataset = find(store, release.dataset, DatasetVersion)
        clean = find(store, dataset.lineage.parents[0], CleanBatch)
        raw = find(store, clean.lineage.parents[0], RawBatch)
        items = from_lines(get_blob(store, clean.quarantine), BadItem)
        bad = [(item, _thumbnail(get_blob(store, item.image)) if item.image else "") for item in items]
        return cls(state, release, report, package, dataset, clean, raw, bad, steps, asked)

    def picture(self) -> bytes:
        """Eight answered pictures in a grid, as a JPEG."""
        tiles = [cv2.resize(tile, (240, 240)) for tile in self._drawn(8)]
        grid = np.vstack([np.hstack(tiles[:4]), np.hstack(tiles[4:8])])
        return bytes(cv2.imencode(".jpg", grid, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())

    def _drawn(self, count: int) -> list[Any]:
        pairs = zip(self.asked.contents, self.asked.answers, strict=False)
        return [draw(decode(content), answer, self.asked.names) for content, answer in list(pairs)[:count]]


def _thumbnail(content: bytes) -> str:
    try:
        return to_jpeg_uri(decode(content), 160)
    except UserError:
        return ""  # the page says "no picture": being undecodable may be the very reason


def render(story: Story, seconds: float) -> str:
    """The page as HTML.

    Args:
        seconds: How long the demo took, for the first line.
    """
    scores = story.report.challenger_scores
    body = [
        f"<p>A detector of handwritten digits on photographs was trained, judged, registered and served in "
        f"<strong>{seconds:.0f} s</strong>. It reaches <strong>mAP50 {scores.map50:.3f}</strong> on "
        f"{story.report.images} images that it never saw, and answered <strong>{len(story.asked.seconds)}</strong> "
        f"questions, {story.asked.median_ms:.1f} ms each.</p>",
        "<h2>What the endpoint answers</h2>",
        _grid((to_jpeg_uri(tile, 320), "") for tile in story._drawn(SHOWN)),
        "<h2>The gate</h2>",
        f'<p class="{"ok" if story.report.decision == "pass" else "bad"}">{escape(story.report.reason)}</p>',
        _table(
            ("check", "value", "limit", "", "why"),
            [
                (check.name, _number(check.value), _number(check.limit), check.outcome, check.sentence)
                for check in story.report.checks
            ],
        ),
        "<h2>Accuracy by class</h2>",
        f'<p class="muted">AP50 on the holdout; overall mAP50 {_number(scores.map50)}, '
        f"mAP50-95 {_number(scores.map)}.</p>",
        _bars(scores.class_map50),
        "<h2>Training</h2>",
        _curve(story.package.curve),
        "<h2>Quarantine</h2>",
        f"<p>{len(story.bad)} of {story.raw.count} files were not fit to be used and were left out.</p>",
        _grid((uri, f"<strong>{escape(item.path)}</strong><br>{escape(item.detail)}") for item, uri in story.bad),
        "<h2>Lineage</h2>",
        _lineage(story),
        "<h2>Time</h2>",
        _times(story.steps),
    ]
    return page("From a folder of images to a served detector", "\n".join(body))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values) + "</tr>"

    return f"<table>{cells('th', head)}{''.join(cells('td', row) for row in rows)}</table>"


def _grid(cards: Any) -> str:
    def card(uri: str, text: str) -> str:
        image = f'<img src="{uri}" alt="" width="320">' if uri else '<p class="muted">no picture in it</p>'
        return f'<figure class="card">{image}<figcaption>{text}</figcaption></figure>'

    return f'<div class="grid">{"".join(card(*each) for each in cards)}</div>'


def _bars(values: dict[str, float | None]) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{_number(value)}</td>"
        f'<td style="width:100%"><span class="bar" style="width:{100 * (value or 0):.1f}%"></span></td></tr>'
        for name, value in values.items()
    ]
    return f'<table style="display:table;width:100%">{"".join(rows)}</table>'


def _curve(curve: Sequence[Epoch]) -> str:
    """mAP50 on the validation images by epoch, as an SVG of 640 x 220."""
    points = [(epoch.epoch, epoch.metrics["map50"]) for epoch in curve]
    last = max(1, points[-1][0])

    def at(epoch: float, value: float) -> str:
        return f"{40 + 590 * epoch / last:.1f},{200 - 180 * value:.1f}"

    lines = "".join(
        f'<line x1="40" x2="630" y1="{200 - 180 * y}" y2="{200 - 180 * y}" stroke="var(--line)"/>'
        f'<text x="32" y="{204 - 180 * y}" text-anchor="end">{y}</text>'
        for y in (0, 0.25, 0.5, 0.75, 1)
    )
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in (at(*p).split(",") for p in points))
    return (
        '<svg viewBox="0 0 640 225" role="img" aria-label="mAP50 on validation images by epoch" font-size="11" '
        f'fill="var(--soft)">{lines}<g fill="var(--bar)"><polyline fill="none" stroke="var(--bar)" stroke-width="2" '
        f'points="{" ".join(at(*p) for p in points)}"/>{dots}</g>'
        f'<text x="630" y="220" text-anchor="end">epoch {last}</text></svg>'
        f'<p class="muted">mAP50 on the validation images after each of {len(points)} epochs, '
        f"{sum(epoch.seconds for epoch in curve) / len(curve):.1f} s each.</p>"
    )


def _lineage(story: Story) -> str:
    state = story.state
    since = datetime.fromtimestamp(state.since).strftime("%Y-%m-%d %H:%M:%S")
    counts = ", ".join(f"{count} {split}" for split, count in story.dataset.counts.items())
    rows = [
        ("files", story.raw.watermark, f"{story.raw.count} images in {story.raw.source}"),
        ("checked", story.clean.id, f"{story.clean.count} fit, {sum(story.clean.rejected.values())} in quarantine"),
        ("data version", story.dataset.id, counts),
        (
            "model package",
            story.package.id,
            f"weights {story.package.checkpoint.digest[:16]}, by code {story.package.lineage.code}",
        ),
        ("gate", story.report.id, story.report.decision),
        ("release", story.release.id, f"{story.release.model} {story.release.version} in the registry"),
        ("served", state.stable or "–", f"at endpoint {state.endpoint} since {since}: {state.reason}"),
    ]
    return _table(("", "id", ""), [(name, id[:16], text) for name, id, text in rows])


def _times(steps: Sequence[StepRecord]) -> str:
    longest = max((step.seconds for step in steps), default=1) or 1
    rows = [
        f"<tr><td>{escape(step.step)}</td><td>{step.seconds:.1f} s</td><td>"
        f'<span class="bar" style="width:{100 * step.seconds / longest:.1f}%"></span>'
        f'<span class="muted">{escape(step.outcome)}: {escape(step.sentence)}</span></td></tr>'
        for step in steps
    ]
    return f'<table style="display:table;width:100%">{"".join(rows)}</table>'
