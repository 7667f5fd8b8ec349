"""A release becomes champion. First form: where there is none; beside another champion it is held for a canary.

The writes, in order: the wanted state (compare-and-swap), the ledger, MLflow's alias, the run's conclusion, the report.
A step that was killed between any two of them is run again and adopts what it finds.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..runtime.artifacts import Lineage, ModelPackage, Release, Resolution, RolloutReport, content_id
from ..runtime.config import Rollout
from ..runtime.decisions import Outcome, conclude
from ..runtime.errors import Conflict, FlywheelError, PlatformError, UserError
from ..runtime.manifests import keep
from ..runtime.packages import fetch_package
from ..runtime.ports import EndpointState, Served, Serving, Store
from ..runtime.step import say, step
from . import ledger
from .ready import until_it_answers

if TYPE_CHECKING:
    from mlflow import MlflowClient

Verdict = Literal["take", "adopt", "canary", "changed"]


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
        return "canary", (
            f"{_name(now)} is champion; {_name(release)} may only replace it after a canary, which this version of "
            "rollout does not do yet."
        )
    return "take", f"{_name(release)} is the first release of the endpoint."


def _name(release: Release | None) -> str:
    return f"{release.model} version {release.version}" if release else "none"


class Rolling:
    """One rollout at work: its ports, and what it is about."""

    def __init__(
        self,
        store: Store,
        serving: Serving,
        release: Release,
        champion: Release | None,
        settings: Rollout,
        run: str,
        ask: Callable[[str], str],
        project: Callable[[Release], None],
    ) -> None:
        self.store, self.serving, self.release, self.champion = store, serving, release, champion
        self.settings, self.run, self.ask, self.project = settings, run, ask, project
        self.version = f"v{release.version}"

    def roll(self) -> tuple[Literal["promote", "hold"], Verdict, str]:
        """Decide, act, and wait until the endpoint shows it.

        Returns:
            The decision, the verdict behind it, and the reason.

        Raises:
            PlatformError: The endpoint does not answer with the release. If it never did, it is taken back, unless
                nothing serves at all: then `flywheel serve` will find it.
        """
        verdict, why, state = self._claim()
        if verdict in ("canary", "changed"):
            return "hold", verdict, why
        try:
            url = until_it_answers(
                *(self.serving, self.settings.endpoint, self.version, self.release, self.settings.ready_timeout_s),
                *(self.ask, lambda line: say(f"rollout: {line}")),
            )
        except PlatformError as error:
            if self.serving.url(self.settings.endpoint) and not ledger.entered(self.store, state):
                self._take_back(state, error.message)
            raise
        ledger.append(self.store, state)
        reason = f"{why} {url} answers with {self.version} as its trainer saw."
        try:
            self.project(self.release)
        except Exception as error:  # whatever MLflow's back end raises: the alias is a projection and undoes nothing
            what = str(error).partition("\n")[0] or type(error).__name__
            reason += f" MLflow's alias champion was not set: {what}"
        return "promote", verdict, reason

    def _claim(self) -> tuple[Verdict, str, EndpointState]:
        """Write the wanted state, unless it is there already or somebody else's."""
        while True:
            state = self.serving.read(self.settings.endpoint)
            verdict, why = judge(state, self.release, self.champion)
            if verdict != "take":
                return verdict, why, state
            wanted = state.but(
                stable=self.version,
                versions={self.version: Served(release=self.release, weight=100)},
                since=time.time(),
                by=self.run,
                reason=why,
            )
            try:
                return verdict, why, self.serving.write(wanted)
            except Conflict:
                continue  # somebody was quicker: judge what they wrote

    def _take_back(self, state: EndpointState, why: str) -> None:
        """A first release that never answered must not stay champion: the next one would be held for its sake."""
        empty: dict[str, object] = {"stable": None, "versions": {}, "since": time.time(), "by": self.run}
        reason = f"{self.version} was taken back: {why}"
        try:
            taken = self.serving.write(state.but(**empty | {"reason": reason}))
        except Conflict:
            return  # the endpoint is somebody else's by now
        ledger.append(self.store, taken)
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
                answer = infer(url, endpoint, case.image, case.conf, embedding=True)
                if answer.version != f"v{release.version}":
                    return f"{url} still answers with {answer.version}"
                if problem := golden.difference(case.expected, answer, package.names):
                    return f"golden image {number} of {len(cases)} is not reproduced: {problem}"
        except FlywheelError as error:
            return error.message
        return ""

    return ask


def set_alias(registry: "MlflowClient", release: Release) -> None:
    """Point MLflow's alias `champion` of the model to the release."""
    registry.set_registered_model_alias(release.model, "champion", release.version)


def report_of(
    release: Release, resolution: Resolution, url: str, decision: Literal["promote", "hold"], why: str, lineage: Lineage
) -> RolloutReport:
    champion = resolution.champion.id if resolution.champion else None
    return RolloutReport(
        id=content_id([resolution.endpoint, release.id, champion, decision]),
        lineage=lineage,
        decision=decision,
        reason=why,
        endpoint=resolution.endpoint,
        url=url,
        release=release.id,
        champion=champion,
    )


def run(
    release: str,
    champion: str,
    report: str,
    config: str,
    endpoint: str,
    ready_timeout_s: float,
    platform: str,
    run_id: str,
) -> str:
    """Roll a release out and write the RolloutReport to the path `report`; see `component.rollout`."""
    with step("rollout", platform, run_id) as here:
        settings = Rollout.of(endpoint=endpoint, ready_timeout_s=ready_timeout_s)
        new, resolution = Release.read(release), Resolution.read(champion)
        if resolution.endpoint != endpoint:
            raise UserError(
                f"endpoint is {endpoint!r}, but the champion was looked up at {resolution.endpoint!r}.",
                "give resolve and rollout the same endpoint",
            )
        serving = here.world.serving
        with tempfile.TemporaryDirectory(prefix="flywheel-golden-") as folder:
            decision, verdict, why = Rolling(
                *(here.store, serving, new, resolution.champion, settings, run_id),
                golden_asker(here.store, new, endpoint, Path(folder)),
                lambda served: set_alias(here.world.mlflow, served),  # opened only then, and whatever fails is told,
            ).roll()
        made = report_of(new, resolution, serving.url(endpoint), decision, why, here.lineage(new.id, resolution.id))
        if verdict != "changed":  # against another champion, the same data and configuration may well be decided anew
            conclude(
                here.store, Outcome(dataset=new.dataset, config=config, step="rollout", decision=decision, reason=why)
            )
        keep(here.store, made)
        made.write(report)
        here.artifact, here.sentence = made.id, f"{'Promoted' if decision == 'promote' else 'Held'}: {why}"
        return decision
