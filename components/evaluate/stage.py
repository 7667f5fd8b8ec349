"""Judge a package on the frozen holdout, beside the champion on the same images: EvalReport and page."""

from functools import partial
from pathlib import Path

from ..runtime.artifacts import (
    DatasetVersion,
    EvalReport,
    Lineage,
    ModelPackage,
    OldHoldout,
    Resolution,
    content_id,
)
from ..runtime.blobs import get_blob, put_blob
from ..runtime.config import Evaluate
from ..runtime.decisions import Outcome, conclude
from ..runtime.errors import PlatformError, UserError
from ..runtime.ports import Store
from ..runtime.shown import Log, nothing
from ..runtime.step import step
from ..runtime.tracking import metrics_of, track_report
from .gate import Measured, Older, judge

DRAWN = 12


def judge_package(
    store: Store,
    package: ModelPackage,
    champion: ModelPackage | None,
    dataset: DatasetVersion,
    limits: Evaluate,
    lineage: Lineage,
) -> EvalReport:
    """Ask both packages about every holdout of the data, hold the numbers against the limits, and draw the page.

    Raises:
        UserError: The package was trained for other classes than the data has.
        PlatformError: A package does not do here what its trainer saw, or stored bytes are damaged.
    """
    from ..recipes.detection.mistakes import worst
    from .exams import examine
    from .measure import read_image
    from .page import mistakes_on, render

    if package.names != dataset.names:
        raise UserError(
            f"package {package.id} knows {len(package.names)} other classes than the {len(dataset.names)} of the data.",
            "train on this data version",
        )
    if not dataset.holdouts[0].count:
        raise UserError(f"The holdout of data version {dataset.id} has no image.", "give the data a test split")
    own, *older = examine(store, package, champion, dataset)
    mine = own.scores
    measured = Measured(
        len(own.samples),
        mine.map50,
        mine.class_map50,
        mine.latency_ms,
        mine.size_mb,
        own.comparison,
        tuple(Older(exam.dataset, len(exam.samples), exam.comparison) for exam in older if exam.comparison),
    )
    checks, decision, reason = judge(measured, limits)
    wrong = worst(own.served, own.samples, DRAWN)
    gallery = mistakes_on(wrong, own.samples, own.served, dataset.names, partial(read_image, store))
    before = tuple(
        OldHoldout(
            dataset=exam.dataset,
            images=len(exam.samples),
            challenger_scores=exam.scores,
            champion_scores=exam.champion_scores,
        )
        for exam in older
    )
    facts = [
        ("Package", package.id),
        ("Champion", champion.id if champion else "none"),
        ("Data version", dataset.id),
        ("Holdout", f"{len(own.samples)} images, sha256 {dataset.holdouts[0].index.sha256[:16]}"),
        ("Code", lineage.code),
        ("Run", lineage.run),
    ]
    html = render(decision, reason, checks, mine, own.champion_scores, gallery, facts, before)
    inputs = [package.id, champion.id if champion else None, dataset.id, limits.plain()]
    return EvalReport(
        # Not of what was timed: the same package, judged again elsewhere, is the same report unless its gate turns.
        id=content_id(["eval-report.v1", inputs, decision]),
        lineage=lineage,
        decision=decision,
        reason=reason,
        package=package.id,
        champion=champion.id if champion else None,
        dataset=dataset.id,
        images=len(own.samples),
        challenger_scores=mine,
        champion_scores=own.champion_scores,
        checks=checks,
        page=put_blob(store, html.encode(), ".html"),
        agreement=own.agreement,
        older=before,
    )


def champion_of(store: Store, resolution: Resolution) -> ModelPackage | None:
    """The package of the endpoint's champion.

    Raises:
        PlatformError: The store does not have it, or has another one at its place.
    """
    release = resolution.champion
    if release is None:
        return None
    package = ModelPackage.from_json(store.get(release.package_uri), release.package_uri)
    if package.id != release.package:
        raise PlatformError(f"{release.package_uri} holds package {package.id}, not the champion's {release.package}.")
    return package


def run(
    package: str, champion: str, dataset: str, report: str, page: str, config: str, min_map50: float,
    min_class_map50: float, margin: float, min_images: int, old_margin: float, max_latency_ms: float,
    max_size_mb: float, platform: str, run_id: str, log: Log = nothing,
) -> str:  # fmt: skip
    """Judge and write EvalReport and page to their paths; see `component.evaluate`."""
    with step("evaluate", platform, run_id) as here:
        limits = Evaluate.of(
            min_map50=min_map50,
            min_class_map50=min_class_map50,
            margin=margin,
            min_images=min_images,
            old_margin=old_margin,
            max_latency_ms=max_latency_ms,
            max_size_mb=max_size_mb,
        )
        challenger, data = ModelPackage.read(package), DatasetVersion.read(dataset)
        incumbent = champion_of(here.store, Resolution.read(champion))
        if incumbent is not None and incumbent.id == challenger.id:
            incumbent = None  # a run that was killed after its rollout comes by again: nothing is compared with itself

        def build() -> EvalReport:
            lineage = here.lineage(*(made.id for made in (challenger, incumbent, data) if made))
            return judge_package(here.store, challenger, incumbent, data, limits, lineage)

        made = here.reuse(EvalReport, limits, (challenger.id, incumbent.id if incumbent else "none", data.id), build)
        html = get_blob(here.store, made.page)
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_bytes(html)
        made.write(report)
        for name, value in metrics_of(made.challenger_scores).items():
            log(name.replace("/", "_"), value)
        warning = ""
        if made.decision != "pass":  # otherwise register logs it, and rollout concludes
            warning = track_report(lambda: here.world.mlflow, challenger.tracking_run, made)
            outcome = Outcome(
                dataset=data.id, config=config, step="evaluate", decision=made.decision, reason=made.reason
            )
            conclude(here.store, outcome)
        here.sentence = f"{made.decision}: {made.reason}{warning}"
        here.ends = made.decision != "pass"
        return made.decision
