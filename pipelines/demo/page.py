"""The demo's page: everything that happened while the wheel turned, in one file that needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from ...components.recipes.detection.draw import draw, to_jpeg_uri
from ...components.recipes.detection.predict import Detections, decode
from ...components.runtime.artifacts import (
    BadItem,
    CleanBatch,
    DatasetVersion,
    Epoch,
    EvalReport,
    ModelPackage,
    RawBatch,
    Release,
    RolloutReport,
)
from ...components.runtime.blobs import get_blob
from ...components.runtime.errors import UserError
from ...components.runtime.manifests import find
from ...components.runtime.page import checks_table, page
from ...components.runtime.records import from_lines
from ...components.runtime.step import StepRecord
from ...components.serving.client import infer
from .timeline import Mark, timeline

if TYPE_CHECKING:
    from .demo import Watched, Wheel

WORDS = {"promote": "promoted", "hold": "held", "rollback": "rolled back"}


@dataclass(frozen=True)
class Chain:
    """A release and all that it was made of, found by walking its lineage."""

    release: Release
    package: ModelPackage
    dataset: DatasetVersion
    clean: CleanBatch
    raw: RawBatch


@dataclass(frozen=True)
class Story:
    """Everything that the page tells.

    Args:
        drawn: Pictures of the new camera with what the endpoint answers in the end; RGB order as `draw` gives it.
        bad: Items in quarantine, with a thumbnail each.
        chains: Of each release that was champion, oldest first.
    """

    wheel: "Wheel"
    marks: list[Mark]
    drawn: list[Any]
    bad: list[tuple[BadItem, str]]
    chains: list[Chain]

    @classmethod
    def of(cls, wheel: "Wheel", pictures: Sequence[bytes]) -> "Story":
        """Gather it, and ask the endpoint about some pictures."""
        store = wheel.world.store
        champions = [find(store, one.release, Release) for one in wheel.rollouts if one.decision == "promote"]
        chains = []
        for release in champions:
            dataset = find(store, release.dataset, DatasetVersion)
            clean = find(store, dataset.lineage.parents[0], CleanBatch)
            raw = find(store, clean.lineage.parents[0], RawBatch)
            chains.append(Chain(release, find(store, release.package, ModelPackage), dataset, clean, raw))
        items = from_lines(get_blob(store, chains[0].clean.quarantine), BadItem)
        bad = [(item, _thumbnail(get_blob(store, item.image)) if item.image else "") for item in items]
        names = chains[-1].package.names
        answers: list[Detections] = [infer(wheel.url, wheel.endpoint, content, shadow=True) for content in pictures]
        drawn = [draw(decode(content), answer, names) for content, answer in zip(pictures, answers, strict=True)]
        return cls(wheel, marks_of(wheel), drawn, bad, chains)


def marks_of(wheel: "Wheel") -> list[Mark]:
    """Every decision of every run, when its step ended."""
    steps = [step for ended in wheel.ended for step in ended.run.steps]
    words: dict[str, str] = {gate.id: gate.decision for gate in wheel.gates}
    words |= {one.report.id: one.report.decision for one in wheel.watched}
    words |= {rollout.id: WORDS[rollout.decision] for rollout in wheel.rollouts}
    return [
        Mark(step.started + step.seconds, step.step, words[step.artifact], step.sentence.partition(": ")[2])
        for step in sorted(steps, key=lambda step: step.started)
        if step.artifact in words
    ]


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
    wheel = story.wheel
    gate, bad = wheel.gates[-1], wheel.rollouts[-1]
    before, after = gate.champion_scores, gate.challenger_scores
    failed = [sent for sent in wheel.users.sent if sent.status != 200]
    by_stable = sum(sent.version != f"v{_version(wheel, bad)}" for sent in failed)
    gain = f"{_number(before.map50 if before else None)} to {_number(after.map50)}"
    body = [
        f"<p>In <strong>{seconds:.0f} s</strong>, with nobody watching, a detector was trained and served; its camera "
        f"changed; the flywheel noticed, asked for labels, trained on them and promoted a new detector, which raised "
        f"mAP50 on the new camera from <strong>{gain}</strong>; and it took a broken release back. "
        f"Users sent {len(wheel.users.sent)} requests: the broken release failed {len(failed) - by_stable} of them, "
        f"stable ones failed <strong>{by_stable}</strong>.</p>",
        "<h2>Traffic and decisions</h2>",
        timeline(wheel.users.sent, story.marks, wheel.began, wheel.acts[-1][0] + 5),
        _decisions(story),
        "<h2>Drift and harm</h2>",
        _harm(wheel.watched),
        "<h2>Both detectors on both holdouts</h2>",
        _holdouts(gate),
        "<h2>What the endpoint answers in the end</h2>",
        _grid((to_jpeg_uri(tile, 320), "") for tile in story.drawn),
        *_sections(
            "Gate", [(f"v{number}", one.decision, one.reason, one) for number, one in enumerate(wheel.gates, 1)]
        ),
        *_sections(
            "Rollout",
            [(f"v{_version(wheel, one)}", WORDS[one.decision], one.reason, one) for one in wheel.rollouts],
        ),
        "<h2>Training</h2>",
        *(_curve(chain.package.curve) for chain in story.chains),
        "<h2>Quarantine</h2>",
        f"<p>{len(story.bad)} of {story.chains[0].raw.count} files were not fit to be used and were left out.</p>",
        _grid((uri, f"<strong>{escape(item.path)}</strong><br>{escape(item.detail)}") for item, uri in story.bad),
        "<h2>Lineage</h2>",
        *(_lineage(chain) for chain in story.chains),
        "<h2>Time</h2>",
        _times([step for ended in wheel.ended for step in ended.run.steps]),
    ]
    return page("The wheel turns by itself", "\n".join(body))


def _version(wheel: "Wheel", rollout: RolloutReport) -> str:
    return find(wheel.world.store, rollout.release, Release).version


def _decisions(story: Story) -> str:
    rows = [
        (str(number), _clock(mark.at - story.wheel.began), mark.step, mark.decision, mark.sentence)
        for number, mark in enumerate(story.marks, 1)
    ]
    return _table(("", "at", "step", "decision", "why"), rows)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _harm(watched: Sequence["Watched"]) -> str:
    """Estimated against true accuracy, window by window."""
    rows = []
    for number, one in enumerate(watched, 1):
        report = one.report
        drifted = sum(test.drifted for test in report.tests)
        fell = "–" if report.confidence_drop is None else f"{-report.confidence_drop:+.1%}"
        rows.append(
            f"<tr><td>{number}</td><td>{report.decision}</td><td>{drifted} of {len(report.tests)}</td><td>{fell}</td>"
            f"<td>{_number(report.estimated_drop)}</td><td>{one.true_map50:.3f}</td><td style='width:40%'>"
            f'<span class="bar" style="width:{100 * one.true_map50:.0f}%"></span></td></tr>'
        )
    head = "<tr><th>window</th><th>decision</th><th>tests that differ</th><th>confidence</th><th>estimated loss</th>"
    return (
        f'<table style="display:table;width:100%">{head}<th>true mAP50</th><th></th></tr>{"".join(rows)}</table>'
        '<p class="muted">The monitor knows no labels; the true accuracy is known to the demo alone. Confidence is '
        "held against the holdout of the champion of that time.</p>"
    )


def _holdouts(gate: EvalReport) -> str:
    rows = [("new camera", gate.images, gate.champion_scores, gate.challenger_scores)]
    rows += [("first camera", old.images, old.champion_scores, old.challenger_scores) for old in gate.older]
    return _table(
        ("holdout", "images", "v1 mAP50", "v2 mAP50"),
        [
            (name, str(images), _number(one.map50 if one else None), _number(two.map50))
            for name, images, one, two in rows
        ],
    )


def _sections(what: str, reports: Sequence[tuple[str, str, str, EvalReport | RolloutReport]]) -> list[str]:
    """A heading, the sentence and the checks of each report."""
    parts = []
    for name, decision, reason, report in reports:
        good = "ok" if decision in ("pass", "promoted") else "bad"
        parts += [
            f"<h2>{what} of {name}</h2>",
            f'<p><strong class="{good}">{escape(decision)}</strong>: {escape(reason)}</p>',
            f"<details><summary>{len(report.checks)} checks</summary>{checks_table(report.checks)}</details>",
        ]
    return parts


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


def _lineage(chain: Chain) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in chain.dataset.counts.items())
    rejected = sum(chain.clean.rejected.values())
    rows = [
        ("files", chain.raw.watermark, f"{chain.raw.count} images in {chain.raw.source}"),
        ("checked", chain.clean.id, f"{chain.clean.count} fit, {rejected} in quarantine"),
        ("data version", chain.dataset.id, f"{counts}; {len(chain.dataset.holdouts)} holdouts"),
        (
            "model package",
            chain.package.id,
            f"weights {chain.package.checkpoint.digest[:16]}, by code {chain.package.lineage.code}",
        ),
        ("release", chain.release.id, f"{chain.release.model} {chain.release.version} in the registry"),
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
