"""A release becomes champion: at once where there is none, after a canary beside another one.

The writes, in order: the wanted state (compare-and-swap), the ledger, MLflow's alias, the run's conclusion, the report.
A step that was killed between any two of them is run again and adopts what it finds.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..runtime import ledger
from ..runtime.artifacts import Lineage, ModelPackage, Release, Resolution, RolloutReport, content_id
from ..runtime.blobs import get_blob, put_blob
from ..runtime.config import Rollout
from ..runtime.decisions import Outcome, conclude
from ..runtime.errors import Conflict, FlywheelError, PlatformError, UserError
from ..runtime.lines import say
from ..runtime.manifests import keep, load
from ..runtime.packages import fetch_package
from ..runtime.ports import EndpointState, Served, Store
from ..runtime.shown import write_links
from ..runtime.step import step
from ..serving.client import answered_by
from .canary import Canary, Means
from .diary import Ended
from .evidence import Look
from .page import render
from .ready import until_it_answers
from .shadow import replay

if TYPE_CHECKING:
    from mlflow import MlflowClient

Verdict = Literal["take", "adopt", "canary", "changed"]
WORDS = {"promote": "Promoted", "hold": "Held", "rollback": "Rolled back"}


def judge(state: EndpointState, release: Release, champion: Release | None) -> tuple[Verdict, str]:
    """What a release may do at an endpoint, and why.

    Args:
        state: The endpoint's wanted state now.
        champion: The one that the release was compared with.
    """
    now = state.champion
    if now is not None and now.id == release.id:
        return "adopt", f"{now.model} version {now.version} is the champion already."
    if (now.id if now else None) != (champion.id if champion else None):
        return "changed", f"the champion was {_name(champion)} when this run began and is {_name(now)} now."
    if now is not None:
        return "canary", f"{_name(release)} is tried beside {_name(now)}."
    return "take", f"{_name(release)} is the first release of the endpoint."


def _name(release: Release | None) -> str:
    return f"{release.model} version {release.version}" if release else "none"


class Rolling:
    """One rollout at work.

    Args:
        champion: The one that the release was compared with.
        project: Tells the registry who is champion.
    """

    def __init__(
        self,
        means: Means,
        release: Release,
        champion: Release | None,
        settings: Rollout,
        run: str,
        project: Callable[[Release], None],
    ) -> None:
        self.means, self.release, self.champion = means, release, champion
        self.settings, self.run, self.project = settings, run, project
        self.version = f"v{release.version}"

    def roll(self) -> Ended:
        """Decide, act, and wait until the endpoint shows it.

        Raises:
            PlatformError: The endpoint does not answer with the release. If a first one never did, it is taken back,
                unless nothing serves at all: then `flywheel serve` will find it.
        """
        verdict, why, state = self._claim()
        if verdict == "changed":
            return Ended(run=self.run, decision="hold", verdict=verdict, reason=why)
        ended = Ended(run=self.run, decision="promote", verdict=verdict, reason=why)
        if verdict == "canary" and self.champion is not None:
            if self.means.telemetry is None:
                why = "the platform file has no telemetry, so nothing would be known of a canary; it is held back."
                return ended.but(decision="hold", verdict="changed", reason=why)
            ended = Canary(self.means, self.release, self.champion, self.settings, self.run).roll()
            if ended.decision != "promote":
                return ended
            state = self.means.serving.read(self.settings.endpoint)
        return ended.but(reason=f"{ended.reason} {self._finish(state)}")

    def _finish(self, state: EndpointState) -> str:
        """What a person should know beyond the reason."""
        serving, endpoint = self.means.serving, self.settings.endpoint
        try:
            url = until_it_answers(
                *(serving, endpoint, self.version, self.release, self.settings.ready_timeout_s),
                *(self.means.ask, lambda line: say(f"rollout: {line}")),
            )
        except PlatformError as error:
            if serving.url(endpoint) and not ledger.entered(self.means.store, state):
                self._take_back(state, error.message)
            raise
        ledger.append(self.means.store, state)
        if problem := unprojected(self.project, self.release):
            return f"{url} answers with {self.version}. {problem}"
        return f"{url} answers with {self.version} as its trainer saw."

    def _claim(self) -> tuple[Verdict, str, EndpointState]:
        """Write the wanted state of a first release, unless it is there already or somebody else's."""
        while True:
            state = self.means.serving.read(self.settings.endpoint)
            verdict, why = judge(state, self.release, self.champion)
            if verdict != "take":
                return verdict, why, state
            now = self.means.clock()
            versions = {self.version: Served(release=self.release, weight=100)}
            wanted = state.but(
                stable=self.version, versions=versions, since=now, changed=now, by=self.run, reason=why
            )  # fmt: skip
            try:
                return verdict, why, self.means.serving.write(wanted)
            except Conflict:
                continue  # somebody was quicker: judge what they wrote

    def _take_back(self, state: EndpointState, why: str) -> None:
        """A first release that never answered must not stay champion: the next one would be held for its sake."""
        now, reason = self.means.clock(), f"{self.version} was taken back: {why}"
        empty = state.but(stable=None, versions={}, lease=None, since=now, changed=now, by=self.run, reason=reason)
        try:
            taken = self.means.serving.write(empty)
        except Conflict:
            return  # the endpoint is somebody else's by now
        ledger.append(self.means.store, taken)
        say(f"rollout: {reason}")


def golden_asker(store: Store, release: Release, endpoint: str, folder: Path) -> Callable[[str], str]:
    """Ask an address about the package's golden images; what is wrong with the answers, or nothing."""
    from ..recipes.detection import golden
    from ..serving.client import infer

    package = ModelPackage.from_json(store.get(release.package_uri), release.package_uri)
    fetch_package(store, package, folder)
    cases = golden.read(folder / "golden.npz")

    def ask(url: str) -> str:
        try:
            for number, case in enumerate(cases, 1):
                answer = infer(url, endpoint, case.image, case.conf, embedding=True, shadow=True)
                if answer.version != f"v{release.version}":
                    return f"{url} still answers with {answer.version}"
                if problem := golden.difference(case.expected, answer, package.names):
                    return f"golden image {number} of {len(cases)} is not reproduced: {problem}"
        except FlywheelError as error:
            return error.message
        return ""

    return ask


def unprojected(project: Callable[[Release], None], release: Release) -> str:
    """Tell the registry who is champion; what is wrong, or nothing."""
    try:
        project(release)
    except Exception as error:  # whatever MLflow's back end raises: the alias is a projection and undoes nothing
        what = str(error).partition("\n")[0] or type(error).__name__
        return f"MLflow's alias champion was not set: {what}"
    return ""


def set_alias(registry: "MlflowClient", release: Release) -> None:
    """Point MLflow's alias `champion` of the model to the release."""
    registry.set_registered_model_alias(release.model, "champion", release.version)


def report_of(
    store: Store, release: Release, resolution: Resolution, url: str, ended: Ended, lineage: Lineage
) -> RolloutReport:
    """The report, with its page."""
    champion = resolution.champion.id if resolution.champion else None
    looks = [load(store, key, Look) for key in store.list(f"{ended.diary}looks/")] if ended.diary else []
    facts = [
        ("Release", f"{_name(release)}, {release.id}"),
        ("Champion", _name(resolution.champion)),
        ("Endpoint", resolution.endpoint),
        ("Data version", release.dataset),
        ("Run", lineage.run),
    ]
    html = render(ended.decision, ended.reason, ended.checks, looks, facts)
    return RolloutReport(
        id=content_id([resolution.endpoint, release.id, champion, ended.decision, ended.diary]),
        lineage=lineage,
        decision=ended.decision,
        reason=ended.reason,
        endpoint=resolution.endpoint,
        url=url,
        release=release.id,
        champion=champion,
        checks=ended.checks,
        diary=ended.diary,
        page=put_blob(store, html.encode(), ".html"),
    )


def run(
    release: str, champion: str, report: str, page: str, config: str, platform: str, run_id: str, links: str = "",
    **parameters: object,
) -> str:  # fmt: skip
    """Roll a release out and write RolloutReport and page to their paths; see `component.rollout`.

    Args:
        parameters: Fields of config.Rollout.
    """
    with step("rollout", platform, run_id) as here:
        settings = Rollout.of(**parameters)
        endpoint = settings.endpoint
        new, resolution = Release.read(release), Resolution.read(champion)
        if resolution.endpoint != endpoint:
            raise UserError(
                f"endpoint is {endpoint!r}, but the champion was looked up at {resolution.endpoint!r}.",
                "give resolve and rollout the same endpoint",
            )
        incumbent = resolution.champion
        with tempfile.TemporaryDirectory(prefix="flywheel-golden-") as folder:
            means = Means(
                store=here.store,
                serving=here.world.serving,
                telemetry=(lambda: here.world.telemetry) if here.world.platform.telemetry else None,
                ask=golden_asker(here.store, new, endpoint, Path(folder)),
                replay=partial(replay, here.store, endpoint, new, incumbent or new, settings.replays),
                answered_by=lambda: answered_by(here.world.serving.url(endpoint), endpoint),
                tell=lambda line: say(f"rollout: {line}"),
            )
            # MLflow is opened only when the alias is set: whatever fails there is told.
            ended = Rolling(
                means, new, incumbent, settings, run_id, lambda served: set_alias(here.world.mlflow, served)
            ).roll()
        url = here.world.serving.url(endpoint)
        made = report_of(here.store, new, resolution, url, ended, here.lineage(new.id, resolution.id))
        if ended.verdict != "changed":  # against another champion, the same data and configuration may be decided anew
            conclude(
                here.store,
                Outcome(dataset=new.dataset, config=config, step="rollout", decision=made.decision, reason=made.reason),
            )
        keep(here.store, made)
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_bytes(get_blob(here.store, made.page))
        made.write(report)
        infer = f"{url}/v2/models/{endpoint}/infer" if url else ""
        write_links(links, {"Endpoint": infer, "Who served when": f"flywheel history --endpoint {endpoint}"})
        here.artifact, here.sentence = made.id, f"{WORDS[made.decision]}: {made.reason}"
        return made.decision
