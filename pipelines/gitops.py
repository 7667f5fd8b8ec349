"""`flywheel rollout --git`: when a release was promoted, Git gets what serves, so that it can be brought back."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from ..components.runtime import ledger
from ..components.runtime.adapters.kserve.manifests import left_to_the_cluster, manifests_of
from ..components.runtime.artifacts import RolloutReport
from ..components.runtime.config import Platform
from ..components.runtime.errors import PlatformError, UserError
from ..components.runtime.ledger import Entry
from ..components.runtime.manifests import find
from ..components.runtime.ports import EndpointState
from ..components.runtime.wiring import World, connect
from . import local, running
from .repository import cloned, without_password

FILES = ("servingruntime.yaml", "inferenceservice.yaml", "httproute.yaml", "kustomization.yaml")
HEAD = "# Written by flywheel rollout --git, anew at each promotion: changes of your own belong into an overlay.\n"
WORDS = {"hold": "held", "rollback": "rolled back"}


@dataclass(frozen=True)
class Target:
    """Where Git gets what serves.

    Args:
        repository: A URL or a path, as `git clone` takes it.
        path: Folder of all endpoints in it; `.` is its root.
    """

    repository: str
    branch: str
    path: str

    def of(self, endpoint: str, files: Iterable[str]) -> list[str]:
        """The paths of an endpoint's files in the repository."""
        home = "" if self.path == "." else f"{self.path}/"
        return [f"{home}{endpoint}/{name}" for name in files]


@dataclass(frozen=True)
class Entered:
    """What Git got: the id of a commit, or none, and a sentence for a person."""

    commit: str | None
    sentence: str


def roll(
    parameters: dict[str, object], platform: Platform, root: Path, port: int, quiet: bool, target: Target
) -> tuple[running.Ended, Entered]:
    """Run a rollout to its end, then commit what serves if the release was promoted.

    Args:
        parameters: Checked ones, all of them.

    Raises:
        UserError, PlatformError: Git could not be given anything: nothing was started. Or the commit failed; what was
            promoted stays so.
    """
    check(target, platform, str(parameters["endpoint"]))
    ended = running.run(parameters, platform, root, port, quiet, "rollout")
    return ended, enter(target, platform, ended.run, connect(platform))


def check(target: Target, platform: Platform, endpoint: str) -> None:
    """See that Git could be given an endpoint, before anything is started.

    Raises:
        UserError: The platform does not serve on KServe, or the path or the branch is wrong.
        PlatformError: The repository cannot be read or written.
    """
    if not platform.serving_namespace:
        raise UserError(
            f"serving is {platform.serving}: --git commits objects of a cluster, and there are none.",
            "--platform FILE with serving: kserve://NAMESPACE, or leave --git out",
        )
    names = target.path.split("/")
    if target.path != "." and not all(re.fullmatch(r"(?!\.\.?$|\.git$)[\w.-]+", name, re.IGNORECASE) for name in names):
        raise UserError(
            f"--git-path is {target.path!r}: it is no folder within a repository.",
            "--git-path endpoints, or . for its root",
        )
    with cloned(target.repository, target.branch) as clone:
        clone.check(target.of(endpoint, FILES))


def enter(target: Target, platform: Platform, run: local.Run, world: World) -> Entered:
    """Commit what serves, if a rollout promoted it.

    Raises:
        PlatformError: The endpoint or the repository cannot be read, or the push is refused.
    """
    done = [step.artifact for step in run.steps if step.step == "rollout" and step.outcome != "failed"]
    if run.failure or not done:
        return Entered(None, "Nothing is committed: the run failed.")
    report = find(world.store, done[-1], RolloutReport)
    if report.decision != "promote":
        return Entered(None, f"Nothing is committed: the release was {WORDS[report.decision]}.")
    state = world.serving.read(report.endpoint)
    if state.champion is None or state.champion.id != report.release:
        return Entered(None, f"Nothing is committed: {state.stable or 'nothing'} serves by now. {state.reason}")
    if state.edited:
        return Entered(None, f"Nothing is committed: {state.edited}.")
    state = as_promoted(state, ledger.history(world.store, report.endpoint))
    files = files_of(target, platform, state)
    try:
        with cloned(target.repository, target.branch) as clone:
            commit = clone.commit(files, message_of(state, run.id))
    except PlatformError as error:
        raise PlatformError(
            f"{state.stable} serves {state.endpoint}, but Git has not got it: {error.message}",
            "mend that, and give the same command again: it finds the champion at work, and commits it",
        ) from error
    where = f"branch {target.branch} of {without_password(target.repository)}"
    if commit is None:
        return Entered(None, f"Nothing is committed: {where} has {state.endpoint} {state.stable} already.")
    return Entered(commit, f"Commit {commit[:12]} on {where} has {state.endpoint} {state.stable}.")


def as_promoted(state: EndpointState, entries: list[Entry]) -> EndpointState:
    """The state as it was when its champion became champion: what canaries did to it since is no change for Git.

    Args:
        entries: The endpoint's ledger, oldest first.
    """
    first: Entry | None = None
    for entry in reversed(entries):
        if entry.release != state.champion:
            break
        first = entry
    if first is None:
        return state
    return state.but(generation=first.generation, changed=first.at, by=first.by, reason=first.reason)


def files_of(target: Target, platform: Platform, state: EndpointState) -> dict[str, str]:
    """An endpoint's files: text by path in the repository."""
    made = manifests_of(platform, state)
    return dict(zip(target.of(state.endpoint, made), (HEAD + to_yaml(each) for each in made.values()), strict=True))


def message_of(state: EndpointState, run: str) -> str:
    """The message of a commit: what serves now, made of what, and why."""
    champion = state.champion
    assert champion is not None, "only what serves is committed"
    lines = [
        f"Serve {champion.model} version {champion.version} at endpoint {state.endpoint}",
        "",
        state.reason,
        "",
        f"Data version: {champion.dataset}",
        f"Run: {run}",
    ]
    return "\n".join(lines) + "\n"


def to_yaml(document: dict[str, Any]) -> str:
    """YAML without anchors, one line for each value."""
    apart = json.loads(json.dumps(document))  # a part that stands twice in it is one object, which YAML would refer to
    return yaml.safe_dump(apart, sort_keys=False, allow_unicode=True, width=1 << 20)


def show(entered: Entered) -> None:
    """Print what Git got; after a commit, also what Argo CD must leave alone."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(escape(entered.sentence))
    if entered.commit:
        console.print("Argo CD must leave to the cluster what rollouts change. In the spec of its Application:\n")
        console.print(escape(to_yaml(left_to_the_cluster())))
