"""The whole flywheel on this machine: every stage for real, from a folder of images to an answering endpoint."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from kfp_flywheel.components.runtime.artifacts import DatasetVersion, EvalReport, Predictions
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.manifests import find
from kfp_flywheel.components.runtime.wiring import connect
from kfp_flywheel.components.serving.serve import serving
from kfp_flywheel.pipelines import asking, catalogue, running
from kfp_flywheel.pipelines.traffic import Sent, send

from tests.shapes import write
from tests.waiting import wait_for

STEPS = ["resolve", "ingest", "validate", "snapshot", "train", "evaluate", "register", "rollout"]
TOLD = ["notify"]
SMALL = {
    "architecture": "narrow",
    "cpus_per_worker": 1,
    "image_size": 96,
    "epochs": 12,
    "batch": 8,
    "learning_rate": 0.01,
    "mosaic": 0.0,
    "min_map50": 0.3,
    "min_class_map50": 0.0,
}


def parameters(source: Path, **changes: object) -> dict[str, object]:
    pairs = [f"{name}={value}" for name, value in (SMALL | changes).items()]
    return running.read_parameters(str(source), None, pairs)


def left_running(root: Path) -> list[str]:
    """Command lines of processes that still work for this root."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(root) in line and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flywheel")


@pytest.fixture(scope="module")
def first(root: Path, shapes: Path) -> running.Ended:
    return running.run(parameters(shapes), Platform.local(root), root, 0, quiet=True)


def test_a_folder_of_images_becomes_a_served_detector(first: running.Ended, root: Path, shapes: Path) -> None:
    assert first.run.failure == "", first.log.read_text()[-3000:]
    assert [step.step for step in first.run.steps] == STEPS + TOLD
    assert first.outcome is not None
    assert first.outcome.decision == "promote"
    assert first.exit_code == 0
    with serving(Platform.local(root), 0):
        endpoint = connect(Platform.local(root)).serving
        wait_for(lambda: any(seen.ready for seen in endpoint.observe("detector").values()))
        picture = next((shapes.parent / "images" / "test").iterdir())
        answer = asking.predict(picture, "detector", root / "boxes.png", Platform.local(root))
        status = asking.status("detector", Platform.local(root))
    assert answer["detections"]
    assert (root / "boxes.png").stat().st_size > 0
    assert status["versions"][status["stable"]]["ready"]
    wait_for(lambda: not left_running(root), 20)


def test_the_same_data_and_config_end_early_and_say_so(first: running.Ended, root: Path, shapes: Path) -> None:
    again = running.run(parameters(shapes), Platform.local(root), root, 0, quiet=True)
    assert [step.step for step in again.run.steps] == STEPS[:4] + TOLD
    assert "promote" in again.run.steps[-2].sentence
    assert again.exit_code == 0


def test_without_its_last_word_a_run_goes_on_and_reuses_all_work(
    first: running.Ended, root: Path, shapes: Path
) -> None:
    for record in (root / "store" / "decisions").rglob("*.json"):
        record.unlink()
    before = connect(Platform.local(root)).serving.read("detector")
    again = running.run(parameters(shapes), Platform.local(root), root, 0, quiet=True)
    assert [step.step for step in again.run.steps] == STEPS + TOLD
    reused = {step.step for step in again.run.steps if step.outcome == "reused"}
    assert {"ingest", "validate", "snapshot", "train", "evaluate"} <= reused
    assert again.outcome is not None
    assert again.outcome.decision == "promote"
    assert connect(Platform.local(root)).serving.read("detector") == before


def test_the_champion_and_a_registered_version_predict_a_folder(first: running.Ended, root: Path, shapes: Path) -> None:
    platform, given = Platform.local(root), {"images": str(shapes.parent / "images" / "test")}

    def batch(**more: object) -> running.Ended:
        parameters = running.check("batch_predict", given | more)
        return running.run(parameters, platform, root, 0, quiet=True, pipeline="batch_predict")

    ended = batch()
    assert ended.run.failure == "", ended.log.read_text()[-3000:]
    assert [step.step for step in ended.run.steps] == ["resolve", "predict", *TOLD]
    made = find(connect(platform).store, ended.run.steps[1].artifact, Predictions)
    assert (made.count, made.bad) == (48, 0)
    assert set(made.found) == {"disc", "square"}
    assert min(made.found.values()) > 0
    again = batch(model_version="1")
    assert [step.step for step in again.run.steps] == ["recall", "predict", *TOLD]
    assert again.run.steps[1].outcome == "reused"


@pytest.mark.parametrize("origin", ["imported", "files"])
def test_every_component_works_in_somebody_elses_pipeline(
    origin: str, first: running.Ended, root: Path, shapes: Path, tmp_path: Path
) -> None:
    platform = Platform.local(root)
    made = {Path(path).stem for path in catalogue.compile_components(platform, tmp_path / "files")} - {"index"}
    theirs = [sys.executable, str(Path(__file__).with_name("theirs.py"))]
    given = [str(tmp_path / origin) if origin == "files" else origin, str(shapes), platform.line(), json.dumps(SMALL)]
    with serving(platform, 0):
        done = subprocess.run([*theirs, *given], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ended = dict(re.findall(r"flywheel \| (\w+): (done|reused): ", done.stdout))
    assert ended.keys() == made
    assert ended["train"] == "reused"


def test_a_gate_that_fails_keeps_the_endpoint_as_it_was(first: running.Ended, root: Path, shapes: Path) -> None:
    before = connect(Platform.local(root)).serving.read("detector")
    judged = running.run(parameters(shapes, max_size_mb=0.01), Platform.local(root), root, 0, quiet=True)
    assert judged.exit_code == running.GATE_KEPT_CHAMPION
    assert [step.step for step in judged.run.steps] == STEPS[:6] + TOLD
    assert [step.step for step in judged.run.steps if step.ends] == ["evaluate"]
    assert connect(Platform.local(root)).serving.read("detector") == before


def test_pictures_of_another_kind_are_learned_beside_the_old_ones_and_promoted_by_a_canary(
    first: running.Ended, root: Path, shapes: Path, tmp_path: Path
) -> None:
    platform = Platform.local(root)
    source = write(tmp_path / "new", {"train": 120, "val": 16, "test": 48}, seed=5, negative=True)
    canary = {"step_requests": 20, "error_margin": 0.1, "slow_margin": 0.3, "look_s": 0.2, "replays": 20}
    growing = {"grow_from": "champion", "start_from": "champion", "epochs": 8, "old_margin": 0.5}
    pictures = [path.read_bytes() for path in (shapes.parent / "images" / "test").iterdir()]
    over = threading.Event()
    with serving(platform, 0) as url:
        wait_for(lambda: any(seen.ready for seen in connect(platform).serving.observe("detector").values()))
        sent: list[Sent] = []
        users = threading.Thread(target=send, args=(url, "detector", pictures, 40, 0, 0, sent.append, over))

        def ask() -> None:
            """When the canary is there: training needs every core."""
            wait_for(lambda: over.is_set() or len(connect(platform).serving.read("detector").versions) > 1, 280)
            users.start()

        asking_ = threading.Thread(target=ask)
        asking_.start()
        try:
            again = running.run(parameters(source, **growing, **canary), platform, root, 0, quiet=True)
        finally:
            over.set()
            asking_.join()
            users.join()
    assert again.run.failure == "", again.log.read_text()[-3000:]
    assert again.outcome is not None
    assert again.outcome.decision == "promote", again.outcome.reason
    store = connect(platform).store
    made = {step.step: step.artifact for step in again.run.steps}
    report = find(store, made["evaluate"], EvalReport)
    assert [old.images for old in report.older] == [48]
    assert find(store, made["snapshot"], DatasetVersion).counts["train"] == 240
    assert connect(platform).serving.read("detector").stable == "v2"
    assert {one.status for one in sent if one.version == "v1"} == {200}
    assert any(one.version == "v2" for one in sent)


def test_a_wrong_parameter_from_a_dashboard_ends_the_run_in_its_first_step(root: Path, shapes: Path) -> None:
    """Past the CLI's own check: as KFP would start it."""
    wrong = parameters(shapes) | {"margin": -3.0}
    ended = running.run(wrong, Platform.local(root), root, 0, quiet=True)
    assert [step.step for step in ended.run.steps] == ["resolve", *TOLD]
    assert "margin" in ended.run.failure
    assert "-3" in ended.run.failure
    assert ended.exit_code == 2


@pytest.mark.parametrize(
    "moment",
    [
        "train: epoch 2",
        *[pytest.param(f"{step}: started", marks=pytest.mark.faults) for step in STEPS],
    ],
)
def test_a_run_killed_with_9_leaves_nothing_and_goes_on(moment: str, shapes: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "kfp_flywheel.pipelines.cli",
        "run",
        "--data",
        str(shapes),
        "--root",
        str(tmp_path),
    ]
    command += ["--port", "0"]
    for name, value in (SMALL | {"epochs": 4, "min_map50": 0.0}).items():
        command += ["-p", f"{name}={value}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        log = tmp_path / "runs"
        wait_for(lambda: process.poll() is not None or any(moment in path.read_text() for path in log.glob("*.log")))
        assert process.poll() is None, process.stdout and process.stdout.read()
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not left_running(tmp_path), 20)
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert ended["decision"] == "promote"
    assert [step["step"] for step in ended["steps"]] == STEPS + TOLD
    wait_for(lambda: not left_running(tmp_path), 20)
