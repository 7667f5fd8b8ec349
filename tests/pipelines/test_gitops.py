"""What Git gets when a release was promoted. The repositories are real, and lie in a folder of this machine."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.kserve import build
from kfp_flywheel.components.runtime.adapters.kserve.manifests import left_to_the_cluster, manifests_of
from kfp_flywheel.components.runtime.adapters.kserve.serving import state_of
from kfp_flywheel.components.runtime.artifacts import Blob, Lineage, RolloutReport, content_id
from kfp_flywheel.components.runtime.config import Platform, Pods
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.ports import EndpointState, Lease, Served
from kfp_flywheel.components.runtime.step import StepRecord
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.pipelines import gitops
from kfp_flywheel.pipelines.gitops import FILES, Target
from kfp_flywheel.pipelines.local import Run
from kfp_flywheel.pipelines.repository import cloned, without_password

from tests.releases import release, stable
from tests.waiting import wait_for

REPO = Path(__file__).parents[2]
CLUSTER = Platform.of(
    store="s3://bucket",
    jobs="local://",
    serving="kserve://team",
    tracking="http://mlflow.example",
    images={"serve": "registry.example/serve@sha256:" + "0" * 64},
    gateway={"address": "http://gateway.example"},
)
NOBODYS = {"ownerReferences", "resourceVersion", "uid", "status", "managedFields"}
"""What only a cluster can know."""


@pytest.fixture(autouse=True)
def _committer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's settings of git but these."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.com")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


class Bare:
    """A bare repository, as a server has it, with somebody's files in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.target = folder, Target(str(folder), "main", "endpoints")
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder)], check=True)
        seed = folder.with_suffix(".seed")
        subprocess.run(["git", "clone", "--quiet", str(folder), str(seed)], check=True, capture_output=True)
        (seed / "endpoints/detector").mkdir(parents=True)
        (seed / "README.md").write_text("theirs\n")
        (seed / "endpoints/detector/notes.txt").write_text("theirs too\n")
        for command in (["checkout", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
            subprocess.run(["git", "-C", str(seed), *command], check=True)
        subprocess.run(["git", "-C", str(seed), "push", "-q", "origin", "main", "main:theirs"], check=True)
        self.first = self.head

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(self.folder), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    @property
    def head(self) -> str:
        return self.git("rev-parse", "main")

    @property
    def files(self) -> set[str]:
        return set(self.git("ls-tree", "-r", "--name-only", "main").splitlines())

    def text(self, path: str) -> str:
        return self.git("show", f"main:{path}")

    def read(self, path: str) -> Any:
        return yaml.safe_load(self.text(path))

    def hook(self, name: str, script: str) -> None:
        path = self.folder / "hooks" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path / "served.git")


def serve(world: World, version: str, endpoint: str = "detector") -> EndpointState:
    """A champion, as a rollout leaves it: in the wanted state and in the ledger."""
    wanted = stable(world.serving.read(endpoint), version)
    written = world.serving.write(
        wanted.but(changed=float(version), by=f"run-{version}", reason=f"v{version} is good.")
    )
    ledger.append(world.store, written)
    return written


def ended(world: World, version: str, decision: str = "promote", endpoint: str = "detector") -> Run:
    """A rollout's run that ended so."""
    report = RolloutReport(
        id=content_id([endpoint, version, decision]),
        lineage=Lineage(code="c", image="i", run="r"),
        decision=decision,  # type: ignore[arg-type]
        reason="because",
        endpoint=endpoint,
        url="",
        release=release(version).id,
        champion=None,
        page=Blob(uri="", sha256="", size=0),
    )
    keep(world.store, report)
    step = StepRecord(step="rollout", started=1.0, seconds=1.0, outcome="done", sentence="", artifact=report.id)
    return Run("rollout-1", [step])


def keys(document: object) -> Iterator[str]:
    """All names in a document, however deep."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield name
            yield from keys(value)
    elif isinstance(document, list):
        for value in document:
            yield from keys(value)


def test_a_promoted_release_is_committed_with_its_reason_and_nothing_else_changes(bare: Bare, world: World) -> None:
    state = serve(world, "3")
    entered = gitops.enter(bare.target, CLUSTER, ended(world, "3"), world)
    assert entered.commit == bare.head != bare.first
    assert bare.git("rev-parse", "main^") == bare.first
    mine = {f"endpoints/detector/{name}" for name in FILES}
    assert bare.files == mine | {"README.md", "endpoints/detector/notes.txt"}
    assert set(bare.git("diff", "--name-only", "main^", "main").splitlines()) == mine
    assert bare.git("log", "-1", "--format=%B") == (
        "Serve detector version 3 at endpoint detector\n\nv3 is good.\n\nData version: data\nRun: rollout-1"
    )
    runtime, service, route, listed = (bare.read(f"endpoints/detector/{name}") for name in FILES)
    assert listed["resources"] == list(FILES[:3])
    given = {variable["name"]: variable["value"] for variable in service["spec"]["predictor"]["model"]["env"]}
    assert given["FLYWHEEL_PACKAGE"] == state.versions["v3"].release.package_uri
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    assert runtime["spec"]["containers"][0]["image"] == CLUSTER.images["serve"]
    assert build.weights(route) == {"detector-v3": 100}
    assert state_of(route) == state


def test_the_files_say_what_the_cluster_is_told(world: World, bare: Bare) -> None:
    state = serve(world, "3")
    made = gitops.files_of(bare.target, CLUSTER, state)
    documents = {path.rpartition("/")[2]: yaml.safe_load(text) for path, text in made.items()}
    assert documents == manifests_of(CLUSTER, state)
    assert tuple(documents) == FILES
    assert (documents["servingruntime.yaml"], documents["inferenceservice.yaml"]) == build.server(
        CLUSTER, "detector", "v3", state.versions["v3"]
    )
    assert not any("&id" in text or "*id" in text for text in made.values())


def test_git_has_nothing_that_only_a_cluster_knows(world: World) -> None:
    state = serve(world, "3")
    canary = Served(release=release("4"), weight=10)
    lease = Lease(owner="rollout-of-4", seconds=15.0, renewed=1.0)
    trying = state.but(
        versions={"v3": state.versions["v3"].but(weight=90), "v4": canary}, lease=lease, edited="it was edited"
    )
    made = manifests_of(CLUSTER, trying)
    assert made == manifests_of(CLUSTER, state)
    assert not NOBODYS & set(keys(made))
    assert "rollout-of-4" not in str(made)
    assert "v4" not in str(made)

    # The same looks find what is there.
    assert CLUSTER.gateway
    live = build.divided(build.route("team", "detector", CLUSTER.gateway), "team", trying, "v2")
    assert "rollout-of-4" in str(live)
    assert "v4" in str(live)
    made["inferenceservice.yaml"]["metadata"]["uid"] = "x"
    owned = build.companions(made["inferenceservice.yaml"], Pods(min_replicas=2), 100, 2, canary=False)
    assert set(keys(list(owned.values()))) & NOBODYS == {"ownerReferences", "uid"}


def test_a_committed_route_gives_the_state_back_and_an_edited_one_says_so(bare: Bare, world: World) -> None:
    state = serve(world, "3")
    gitops.enter(bare.target, CLUSTER, ended(world, "3"), world)
    route = bare.read("endpoints/detector/httproute.yaml")
    assert state_of(route) == state
    route["spec"]["rules"][-1]["backendRefs"][0]["weight"] = 50
    route["metadata"]["managedFields"] = [
        {"manager": "kubectl", "time": "now", "fieldsV1": {"f:spec": {"f:rules": {}}}}
    ]
    assert state_of(route).edited


def test_the_same_again_is_no_commit_and_the_next_champion_is_one(bare: Bare, world: World) -> None:
    first = serve(world, "3")
    one = gitops.enter(bare.target, CLUSTER, ended(world, "3"), world).commit
    assert gitops.enter(bare.target, CLUSTER, ended(world, "3"), world).commit is None

    # A canary that came and went leaves other numbers and another reason in the state, and the same champion.
    back = world.serving.write(first.but(changed=9.0, by="run-4", reason="v4 was taken back."))
    ledger.append(world.store, back)
    again = gitops.enter(bare.target, CLUSTER, ended(world, "3"), world)
    assert again.commit is None
    assert "already" in again.sentence
    assert bare.head == one

    serve(world, "5")
    two = gitops.enter(bare.target, CLUSTER, ended(world, "5"), world).commit
    assert two == bare.head != one
    assert bare.read("endpoints/detector/inferenceservice.yaml")["metadata"]["name"] == "detector-v5"


@pytest.mark.parametrize(("decision", "word"), [("hold", "held"), ("rollback", "rolled back")])
def test_a_release_that_was_not_promoted_commits_nothing(decision: str, word: str, bare: Bare, world: World) -> None:
    serve(world, "3")
    entered = gitops.enter(bare.target, CLUSTER, ended(world, "3", decision), world)
    assert entered.commit is None
    assert word in entered.sentence
    assert bare.head == bare.first
    assert gitops.enter(bare.target, CLUSTER, ended(world, "3"), world).commit == bare.head


def test_a_run_that_failed_and_a_champion_of_somebody_else_commit_nothing(bare: Bare, world: World) -> None:
    serve(world, "3")
    failed = gitops.enter(bare.target, CLUSTER, Run("rollout-1", [], "rollout: out of memory"), world)
    serve(world, "4")
    overtaken = gitops.enter(bare.target, CLUSTER, ended(world, "3"), world)
    assert (failed.commit, overtaken.commit) == (None, None)
    assert "failed" in failed.sentence
    assert "v4 serves by now" in overtaken.sentence
    assert bare.head == bare.first


def test_pushes_at_the_same_time_all_arrive(bare: Bare, world: World) -> None:
    names = ["cats", "dogs", "birds"]
    for name in names:
        serve(world, "1", name)
    runs = {name: ended(world, "1", endpoint=name) for name in names}
    start, commits = threading.Barrier(len(names)), {}

    def enter(name: str) -> None:
        start.wait()
        commits[name] = gitops.enter(bare.target, CLUSTER, runs[name], world).commit

    threads = [threading.Thread(target=enter, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(commits.values())) == len(names)
    assert set(bare.git("rev-list", f"{bare.first}..main").split()) == set(commits.values())
    assert {f"endpoints/{name}/{file}" for name in names for file in FILES} < bare.files
    assert {"README.md", "endpoints/detector/notes.txt"} < bare.files


def test_a_push_that_came_between_is_built_upon(bare: Bare, world: World) -> None:
    """The hook lets somebody else win, at the first push only."""
    seed = bare.folder.with_suffix(".seed")
    (seed / "meanwhile.txt").write_text("theirs\n")
    for command in (["add", "."], ["commit", "-q", "-m", "Meanwhile"], ["push", "-q", "origin", "main:theirs"]):
        subprocess.run(["git", "-C", str(seed), *command], check=True)
    bare.hook(
        "update",
        'echo tried >> tries; test "$(wc -l < tries)" -gt 1 || git update-ref refs/heads/main refs/heads/theirs',
    )
    serve(world, "3")
    entered = gitops.enter(bare.target, CLUSTER, ended(world, "3"), world)
    assert (bare.folder / "tries").read_text() == "tried\n" * 2
    assert entered.commit == bare.head
    assert bare.git("rev-parse", "main^") == bare.git("rev-parse", "theirs")
    assert {"meanwhile.txt", "endpoints/detector/httproute.yaml"} < bare.files


def test_a_push_that_a_hook_refuses_is_told_in_its_words_and_not_tried_again(bare: Bare, world: World) -> None:
    bare.hook(
        "pre-receive", "echo tried >> tries; echo 'only on Mondays, see https://me:secret@git.example' >&2; exit 1"
    )
    gitops.check(bare.target, CLUSTER, "detector")  # a dry run asks no hook
    serve(world, "3")
    with pytest.raises(PlatformError, match="only on Mondays") as raised:
        gitops.enter(bare.target, CLUSTER, ended(world, "3"), world)
    assert raised.value.message.startswith("v3 serves detector")
    assert "see https://git.example" in raised.value.message
    assert "same command again" in raised.value.next
    assert (bare.folder / "tries").read_text() == "tried\n"
    assert bare.head == bare.first

    (bare.folder / "hooks/pre-receive").unlink()
    assert gitops.enter(bare.target, CLUSTER, ended(world, "3"), world).commit == bare.head


def test_a_good_repository_passes_the_check_and_is_left_alone(bare: Bare) -> None:
    gitops.check(bare.target, CLUSTER, "detector")
    gitops.check(Target(str(bare.folder), "main", "."), CLUSTER, "detector")
    assert bare.head == bare.first
    assert (
        bare.git("count-objects") == "0 objects, 0 kilobytes" or "endpoints/detector/httproute.yaml" not in bare.files
    )


@pytest.mark.parametrize("path", ["", "..", "a/../b", "/etc", "a//b", ".git", "a/.GIT", "a b", "a\nb"])
def test_a_path_that_is_no_folder_of_the_repository_is_named(path: str, bare: Bare) -> None:
    with pytest.raises(UserError, match="--git-path") as raised:
        gitops.check(Target(str(bare.folder), "main", path), CLUSTER, "detector")
    assert repr(path) in raised.value.message


def test_a_file_where_a_folder_is_wanted_is_found_before_the_rollout(bare: Bare) -> None:
    with pytest.raises(PlatformError, match=r"README\.md"):
        gitops.check(Target(str(bare.folder), "main", "README.md"), CLUSTER, "detector")


def test_without_git_or_a_name_for_its_commits_nothing_starts(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{who}_NAME")
        monkeypatch.delenv(f"GIT_{who}_EMAIL")
    (tmp_path / "config").write_text("[user]\n\tuseConfigOnly = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    with pytest.raises(UserError, match="who commits"):
        gitops.check(bare.target, CLUSTER, "detector")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not on the PATH"):
        gitops.check(bare.target, CLUSTER, "detector")


def flywheel(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kfp_flywheel.pipelines.cli", "rollout", "--json", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--git", "nowhere.git"], 3, "nowhere.git"),
        (["--git", "served.git", "--git-branch", "nowhere"], 2, "served.git has no branch nowhere"),
        (["--git", "served.git", "--git-path", "../out"], 2, "--git-path"),
        (["--git", "http://me:secret@127.0.0.1:1/served.git"], 3, "http://127.0.0.1:1/served.git"),
    ],
)
def test_a_wrong_repository_is_told_before_any_rollout(
    options: list[str], code: int, said: str, bare: Bare, tmp_path: Path
) -> None:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER.plain()))
    done = flywheel("--platform", "cluster.yaml", *options, folder=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "\nnext:  " in done.stderr
    assert "secret" not in done.stderr
    assert not (tmp_path / ".flywheel").exists()


def test_a_machine_without_a_cluster_is_told_what_is_needed(bare: Bare, tmp_path: Path) -> None:
    done = flywheel("--git", "served.git", folder=tmp_path)
    assert done.returncode == 2
    assert "serving is local://" in done.stderr
    assert "kserve://NAMESPACE" in done.stderr
    assert not (tmp_path / ".flywheel").exists()


def test_no_message_shows_a_password() -> None:
    assert without_password("no https://me:p@ss@git.example/x, no ssh://me@git.example") == (
        "no https://git.example/x, no ssh://git.example"
    )
    assert without_password("me@git.example:x.git") == "me@git.example:x.git"


@pytest.mark.parametrize("number", [signal.SIGINT, None])
def test_nothing_is_left_of_the_clone(number: signal.Signals | None, bare: Bare, tmp_path: Path) -> None:
    """Interrupted while the other side takes its time; and with an error."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    bare.hook("pre-receive", "touch begun; sleep 60" if number else "touch begun; exit 1")
    code = (
        "from kfp_flywheel.pipelines.repository import cloned\n"
        f"with cloned({str(bare.folder)!r}, 'main') as clone:\n"
        "    clone.commit({'a.txt': 'a'}, 'Add a')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(scratch)}, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (bare.folder / "begun").exists(), 30)
    if number:
        assert [path.name.startswith("flywheel-git-") for path in scratch.iterdir()] == [True]
        process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert ("KeyboardInterrupt" if number else "PlatformError") in said
    assert list(scratch.iterdir()) == []
    assert bare.head == bare.first


def test_a_relative_path_and_the_variables_of_a_hook_lead_to_the_right_repository(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "nowhere"))
    with cloned("served.git", "main") as clone:
        commit = clone.commit({"a.txt": "a\n"}, "Add a")
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_OBJECT_DIRECTORY")
    assert commit == bare.head
    assert bare.text("a.txt") == "a"


def test_argo_cd_is_told_what_rollouts_change(world: World) -> None:
    """Every pointer leads to something that a rollout writes, in the objects that are committed."""
    told = left_to_the_cluster()
    made = {document["kind"]: document for document in manifests_of(CLUSTER, serve(world, "3")).values()}
    pointers = {each["kind"]: each["jsonPointers"] for each in told["ignoreDifferences"]}
    assert pointers["HTTPRoute"] == [
        "/spec/rules",
        "/metadata/annotations/flywheel~1state",
        "/metadata/annotations/flywheel~1former",
    ]
    for pointer in pointers["HTTPRoute"]:
        found: Any = made["HTTPRoute"]
        for name in pointer.split("/")[1:]:
            found = found[name.replace("~1", "/")]
    assert pointers["InferenceService"] == ["/metadata/annotations/serving.kserve.io~1stop"]
    assert told["syncPolicy"] == {"syncOptions": ["RespectIgnoreDifferences=true"]}
    assert gitops.to_yaml(told) in (REPO / "pipelines/README.md").read_text()
