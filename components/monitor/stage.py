"""Watch an endpoint: hold its last requests against the champion's reference, and have it retrained when it is harmed.

Nothing is remembered but what lies in the store: the log, the requests for labels, the runs that were started.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..label import requests as asking
from ..recipes.detection import drift, harm, reference
from ..recipes.detection.log import pictures_of, read_window
from ..recipes.detection.predict import Predictor, decode
from ..recipes.detection.window import Window
from ..runtime.artifacts import (
    DatasetVersion,
    EvalReport,
    ModelPackage,
    MonitorReport,
    Release,
    Sample,
    content_id,
)
from ..runtime.blobs import get_blob, put_blob
from ..runtime.config import Monitor
from ..runtime.errors import FlywheelError
from ..runtime.lines import say
from ..runtime.manifests import find, keep, load
from ..runtime.packages import fetch_package
from ..runtime.ports import EndpointState, Store
from ..runtime.records import from_lines
from ..runtime.step import code_version, step
from .judge import Decision, Seen, judge, may_ask
from .measured import labelled, measure
from .page import render
from .retraining import Retrainings, ask_for_labels, retraining

SHOWN = 6
CALIBRATED = 60
"""Labelled images of the holdout that the estimate of harm is calibrated on."""


@dataclass(frozen=True)
class Watched:
    """The champion of an endpoint and its last requests: two windows, and the later one of them."""

    release: Release
    package: ModelPackage
    last: Window
    now: Window
    reference: reference.Reference | None
    predictor: Predictor
    seen: Seen


def watch(store: Store, landing: Store | None, state: EndpointState, settings: Monitor, folder: Path) -> Watched | None:
    """Look at the last two windows of the champion's requests; none where there is no champion.

    Args:
        landing: Where labels may have arrived.
        folder: Receives the package.
    """
    release = state.champion
    if release is None:
        return None
    package = ModelPackage.from_json(store.get(release.package_uri), release.package_uri)
    predictor = Predictor(fetch_package(store, package, folder))
    version, size = f"v{release.version}", settings.window
    last, left_out = read_window(store, state.endpoint, version, 2 * size, since=state.since)
    for sentence in left_out:
        say(f"monitor: {sentence}")
    split = max(last.requests - size, 0)
    before, now = last.part(0, split), last.part(split, last.requests)
    try:
        known = reference.read(folder / "reference.npz")
    except FlywheelError as error:
        return Watched(release, package, last, now, None, predictor, Seen(problem=error.message))
    if now.requests and known.feature_names.tolist() != now.feature_names.tolist():
        problem = "the package's reference describes requests by other features than the log; train again."
        return Watched(release, package, last, now, None, predictor, Seen(problem=problem))
    full = now.requests >= size
    measured = None
    if landing is not None:
        found = list(labelled(store, landing, state.endpoint, last, len(package.names)))
        measured = measure(predictor, found, find(store, release.report, EvalReport).challenger_scores.map50)
    tests = drift.compare(known, now, settings.drift_alpha, settings.detector) if full else ()
    loss = lost_before = None
    if any(test.drifted for test in tests):
        estimator = estimator_of(store, release, package, predictor)
        loss = harm.loss(estimator, known, now)
        if before.requests >= size and any(
            test.drifted for test in drift.compare(known, before, settings.drift_alpha, settings.detector)
        ):
            lost_before = harm.loss(estimator, known, before)
    fall = harm.confidence_drop(known, now) if full else None
    seen = Seen(now.requests, tests, fall, loss, lost_before, measured)
    return Watched(release, package, last, now, known, predictor, seen)


def estimator_of(store: Store, release: Release, package: ModelPackage, predictor: Predictor) -> harm.Estimator:
    """What says how much a window costs: calibrated once for a package, on its labelled holdout made worse."""
    key = f"monitor/{package.id}/{content_id(code_version())}.json"
    if not store.exists(key):
        say("monitor: calibrates the estimate of harm on the holdout")
        holdout = find(store, release.dataset, DatasetVersion).holdouts[0]
        samples = from_lines(get_blob(store, holdout.index), Sample)[:CALIBRATED]
        images = [(decode(get_blob(store, sample.image)), sample) for sample in samples]
        store.put(key, harm.calibrate(predictor, images).to_json())
    return load(store, key, harm.Estimator)


def examples(store: Store, watched: Watched) -> tuple[list[Any], list[Any]]:
    """Some images of the holdout and some of the window."""
    if watched.reference is None:
        return [], []
    holdout = find(store, watched.release.dataset, DatasetVersion).holdouts[0]
    samples = from_lines(get_blob(store, holdout.index), Sample)
    pictures = watched.now.pictures
    mine = [samples[at] for at in _spread(len(samples))]
    theirs = [pictures[at] for at in _spread(len(pictures))]
    return (
        [decode(get_blob(store, sample.image)) for sample in mine],
        [decode(content) for content in pictures_of(store, theirs)],
    )


def _spread(count: int) -> list[int]:
    return [int(at) for at in np.linspace(0, count - 1, min(SHOWN, count))]


def run(report: str, page: str, platform: str, run_id: str, **parameters: object) -> str:
    """Watch, decide, and write MonitorReport and page to their paths; see `component.monitor`.

    Args:
        parameters: Fields of config.Monitor.
    """
    with step("monitor", platform, run_id) as here, tempfile.TemporaryDirectory(prefix="flywheel-monitor-") as folder:
        settings = Monitor.of(**parameters)
        retraining(settings, "checked before anything is done")
        now, store = time.time(), here.store
        landing = here.world.landing if here.world.platform.landing else None
        runs = here.world.runs if here.world.platform.runs else None
        state = here.world.serving.read(settings.endpoint)
        asked = asking.requests(store, settings.endpoint)
        work = Retrainings()
        if landing is not None:
            work.follow(runs, landing, asked, settings, now)
        watched = watch(store, landing, state, settings, Path(folder))
        seen = watched.seen if watched else Seen(problem=f"endpoint {settings.endpoint} has no champion yet.")
        decision, reason = judge(seen, settings)
        request = work.waiting[-1].id if work.waiting else ""
        if decision == "retrain" and watched:
            allowed, why_not = may_ask(asked, work.waiting, work.working, settings, now)
            if landing is None:
                work.told += " Labels cannot be asked for: the platform has no landing."
            elif allowed:
                opened = ask_for_labels(
                    *(store, landing, watched.release, watched.package, watched.last, seen),
                    *(settings.endpoint, reason, now),
                )
                request = opened.id
                work.told += f" Labels for {len(opened.images)} images are asked for in {opened.folder}."
                if not asking.missing(landing, opened):  # it was labels that showed the harm
                    work.follow(runs, landing, [opened], settings, now)
            else:
                work.told += f" No labels are asked for: {why_not}."
        made = _report(store, here.lineage(), settings, now, watched, seen, decision, reason, request, work.started)
        keep(store, made)
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_bytes(get_blob(store, made.page))
        made.write(report)
        here.artifact, here.sentence = made.id, f"{decision}: {reason}{work.told}"
        return decision


def _report(
    store: Store, lineage: Any, settings: Monitor, now: float, watched: Watched | None, seen: Seen,
    decision: Decision, reason: str, request: str, started: Sequence[str],
) -> MonitorReport:  # fmt: skip
    window = watched.now if watched else None
    first, last = (float(window.at[0]), float(window.at[-1])) if window and window.requests else (0.0, 0.0)
    measured = seen.measured.loss if seen.measured else None
    numbers = [
        ("Requests", f"{seen.count}, {_time(first)} to {_time(last)}" if seen.count else "none"),
        ("Champion", f"{watched.release.model} version {watched.release.version}" if watched else "none"),
        ("Tests that show a change", f"{sum(test.drifted for test in seen.tests)} of {len(seen.tests)}"),
        ("Mean confidence, against the holdout's", "–" if seen.confidence is None else f"{-seen.confidence:+.1%}"),
        ("Estimated loss of mAP50", _estimated(seen.loss)),
        ("The same in the window before", _estimated(seen.before)),
        ("Measured loss of mAP50", "–" if seen.measured is None or measured is None
         else f"{measured:.3f} on {seen.measured.images} labelled requests"),
    ]  # fmt: skip
    html = render(
        *(decision, reason, numbers, seen.tests, watched.reference if watched else None, window),
        examples(store, watched) if watched else ([], []),
    )
    release = watched.release.id if watched else ""
    return MonitorReport(
        id=content_id(["monitor-report.v1", settings.endpoint, release, now]),
        lineage=lineage.but(parents=(release,) if release else ()),
        decision=decision,
        reason=reason,
        endpoint=settings.endpoint,
        release=release,
        at=now,
        first=first,
        last=last,
        count=seen.count,
        tests=tuple(seen.tests),
        confidence_drop=seen.confidence,
        estimated_drop=seen.loss.estimate if seen.loss else None,
        measured_drop=measured,
        request=request,
        started=tuple(started),
        page=put_blob(store, html.encode(), ".html"),
    )


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _estimated(loss: harm.Loss | None) -> str:
    return "–" if loss is None else f"{loss.estimate:.3f}, at least {loss.at_least:.3f}"
