"""What follows from harm: a request for labels, and a retraining once they are there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..label import requests as asking
from ..recipes.detection.log import pictures_of
from ..recipes.detection.window import Window
from ..runtime import config
from ..runtime.artifacts import LabelRequest, ModelPackage, Release, Sample
from ..runtime.config import Monitor
from ..runtime.errors import UserError
from ..runtime.ports import RunRequest, Runs, Store
from .judge import Seen
from .measured import labelled


@dataclass
class Retrainings:
    """What has become of the requests for labels: those that wait, runs started now, runs that have not ended, and
    what to tell."""

    waiting: list[LabelRequest] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    working: list[str] = field(default_factory=list)
    told: str = ""

    def follow(
        self, runs: Runs | None, landing: Store, asked: Sequence[LabelRequest], settings: Monitor, now: float
    ) -> None:
        """Start the flywheel for each request whose labels are all there, once."""
        for request in asked:
            name = f"retrain-{request.id}"
            if runs is not None and (found := runs.find(name)):
                self.working += [] if found.over else [name]
                continue
            missing = asking.missing(landing, request)
            if missing:
                self.waiting.append(request)
                self.told += f" {len(missing)} of {len(request.images)} labels are awaited in {request.folder}."
            elif runs is None:
                self.told += f" The labels in {request.folder} are there. Next: flywheel run --data {request.folder}"
            else:
                reason = f"the labels that were asked for are there: {request.reason}"
                parameters = retraining(settings, request.folder)
                runs.start(RunRequest(name=name, pipeline="flywheel", parameters=parameters, reason=reason, at=now))
                self.started.append(name)
                self.working.append(name)
                self.told += f" The labels of request {request.id} are there: run {name} is started."


def retraining(settings: Monitor, source: str) -> dict[str, str | int | float | bool]:
    """The parameters of a retraining: from the champion's checkpoint, on its data and the new ones.

    Raises:
        UserError: A line of `retrain_with` is no NAME=VALUE, or a value is wrong.
    """
    given: dict[str, object] = {"start_from": "champion", "grow_from": "champion"}
    for line in filter(str.strip, settings.retrain_with.splitlines()):
        name, equals, value = line.partition("=")
        if not equals:
            raise UserError(f"retrain_with has the line {line!r}, which is not NAME=VALUE.", "write one a line")
        given[name.strip()] = value
    return config.check(given | {"source": source, "endpoint": settings.endpoint})


def ask_for_labels(
    store: Store,
    landing: Store,
    release: Release,
    package: ModelPackage,
    last: Window,
    seen: Seen,
    endpoint: str,
    reason: str,
    now: float,
) -> LabelRequest:
    """Open a request with the images of both windows, or with those that have labels if these showed the harm.

    Args:
        last: Both windows.
        seen: What is known of them.
    """
    known: list[tuple[bytes, Sample, str]] = []
    if seen.measured is not None and seen.measured.at_least is not None:
        known = list(labelled(store, landing, endpoint, last, len(package.names)))
    images = [content for content, _, _ in known] or list(pictures_of(store, last.pictures))
    made = asking.open_request(store, landing, endpoint, release, package.names, images, reason, now)
    texts = {sample.path: text for _, sample, text in known}
    for name in made.images:
        stem = name.rpartition(".")[0]
        if stem in texts:
            landing.put(f"{endpoint}/{made.id}/labels/{stem}.txt", texts[stem].encode())
    return made
