"""Training: what it gives, that it continues where it was killed, that workers train one model, and end."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from kfp_flywheel.components.recipes.detection.checkpoints import saved
from kfp_flywheel.components.runtime.artifacts import Blob, DatasetVersion, Lineage, ModelPackage, Release, content_id
from kfp_flywheel.components.runtime.blobs import get_blob
from kfp_flywheel.components.runtime.config import Platform, Train
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.manifests import keep, load
from kfp_flywheel.components.runtime.step import run_records
from kfp_flywheel.components.runtime.wiring import World, connect
from kfp_flywheel.components.train.job import check as check_in_job
from kfp_flywheel.components.train.spec import Progress, TrainSpec
from kfp_flywheel.components.train.stage import check, parent_of
from kfp_flywheel.components.train.tracking import JOB_TAG, Tracker

from tests.blocks import package as block_package
from tests.servers import free_port
from tests.training import LINEAGE, SMALL, below, dataset_of, prepare, step
from tests.waiting import wait_for

EPOCHS = 6


class Ran:
    """A platform on which the stage ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.platform = folder, Platform.local(folder)
        self.store = connect(self.platform).store

    @property
    def package(self) -> ModelPackage:
        return ModelPackage.read(self.folder / "package.json")

    @property
    def checkpoints(self) -> list[Any]:
        keys = [key for key in self.store.list("training/") if "/checkpoints/" in key]
        return saved(self.store, keys[0].rpartition("/")[0] + "/") if keys else []

    @property
    def epochs_told(self) -> list[int]:
        """Epochs in the order in which workers ended them."""
        keys = [key for key in self.store.list("training/") if "/progress/" in key]
        told = [load(self.store, key, Progress) for key in keys]
        return [record.epoch.epoch for record in told if record.epoch]


def same_end(one: Ran, other: Ran) -> None:
    """Bit for bit: the weights, and the whole last state: model, average, optimizer."""
    assert one.package.checkpoint.digest == other.package.checkpoint.digest
    assert one.checkpoints[-1].blob.sha256 == other.checkpoints[-1].blob.sha256


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(folder, digits)
    step(folder, epochs=EPOCHS)
    assert below(os.getpid(), "ray") == []
    return Ran(folder)


@pytest.fixture
def process(digits: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The stage at work as a process of its own, with a folder for temporary files of its own."""
    prepare(tmp_path / "flywheel", digits)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as scratch:
        at_work = subprocess.Popen(
            [sys.executable, "-m", "tests.training", str(tmp_path / "flywheel"), json.dumps({"epochs": EPOCHS})],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"TMPDIR": scratch},
        )
        started = []
        try:
            yield at_work
        finally:
            started = below(at_work.pid)
            at_work.kill()
            at_work.wait()
            wait_for(lambda: not any(child.is_running() for child in started), 20)
            wait_for(lambda: not list(Path(scratch).iterdir()), 20)


def test_a_package_comes_of_a_data_version(undisturbed: Ran) -> None:
    package, store = undisturbed.package, undisturbed.store
    version = DatasetVersion.read(undisturbed.folder / "dataset.json")

    assert set(package.files) == {"model.onnx", "config.json", "golden.npz", "reference.npz"}
    assert all(get_blob(store, blob) for blob in package.files.values())
    assert (package.names, package.dataset) == (version.names, version.id)
    assert package.lineage.parents == (version.id,)
    assert [epoch.epoch for epoch in package.curve] == list(range(1, EPOCHS + 1)) == undisturbed.epochs_told
    assert all(
        {"map50", "map", "train/box", "val/cls", "learning_rate"} <= set(epoch.metrics) for epoch in package.curve
    )


def test_the_curve_is_in_mlflow(undisturbed: Ran) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(undisturbed.platform.tracking)
    run = client.get_run(undisturbed.package.tracking_run)
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.008"
    assert run.data.tags["flywheel.dataset"] == undisturbed.package.dataset
    history = client.get_metric_history(run.info.run_id, "map50")
    assert {(point.step, point.value) for point in history} == {
        (epoch.epoch, epoch.metrics["map50"]) for epoch in undisturbed.package.curve
    }


def test_the_same_training_is_not_done_twice(undisturbed: Ran) -> None:
    before = undisturbed.package
    step(undisturbed.folder, "again", epochs=EPOCHS)
    assert run_records(undisturbed.store, "again")[0].outcome == "reused"
    assert undisturbed.package == before


def test_a_killed_worker_resumes_at_its_epoch_bit_for_bit(undisturbed: Ran, digits: Path, tmp_path: Path) -> None:
    prepare(tmp_path, digits)
    ran = Ran(tmp_path)
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: len(ran.checkpoints) >= 2)
        for worker in below(os.getpid(), "RayTrainWorker"):
            worker.kill()
            killed.append(len(ran.checkpoints))

    killer = threading.Thread(target=kill)
    killer.start()
    step(tmp_path, epochs=EPOCHS)
    killer.join()

    assert len(killed) == 1
    assert killed[0] < EPOCHS, "it was killed too late to show anything"
    assert sorted(set(ran.epochs_told)) == list(range(1, EPOCHS + 1))
    assert len(ran.epochs_told) <= EPOCHS + 1, "at most the epoch that was not kept yet is done again"
    same_end(ran, undisturbed)
    assert below(os.getpid(), "ray") == []


@pytest.mark.faults
@pytest.mark.parametrize(
    ("victim", "when"),
    [
        *((victim, "epoch 2") for victim in ("step", "job", "leash", "raylet", "gcs_server")),
        *((victim, when) for victim in ("step", "job") for when in ("Ray comes up", "packaging")),
    ],
)
def test_whatever_is_killed_nothing_is_left_and_the_next_run_continues(
    process: subprocess.Popen[bytes], undisturbed: Ran, tmp_path: Path, victim: str, when: str
) -> None:
    ran = Ran(tmp_path / "flywheel")
    moments = {
        "Ray comes up": lambda: bool(below(process.pid, "raylet")),
        "epoch 2": lambda: len(ran.checkpoints) >= 2,
        "packaging": lambda: len(ran.checkpoints) >= EPOCHS,
    }
    wait_for(moments[when])
    started, scratch = below(process.pid), psutil.Process(process.pid).environ()["TMPDIR"]
    leash, job = below(process.pid, "components.runtime.leash")[:2]
    victims = {"step": [psutil.Process(process.pid)], "leash": [leash], "job": [job]}
    for one in victims.get(victim) or below(process.pid, victim):
        one.send_signal(signal.SIGKILL)

    if victim in ("step", "leash", "job"):
        wait_for(lambda: not any(child.is_running() for child in started), 20)
    process.wait()
    wait_for(lambda: not any(child.is_running() for child in started), 20)
    if victim == "leash":  # the one that removes temporary files is itself gone
        for left in Path(scratch).iterdir():
            shutil.rmtree(left)
    step(tmp_path / "flywheel", "again", epochs=EPOCHS)
    same_end(ran, undisturbed)
    if when != "Ray comes up":
        assert len(ran.epochs_told) <= EPOCHS + 1


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_nothing_is_left(process: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals) -> None:
    ran = Ran(tmp_path / "flywheel")
    wait_for(lambda: len(ran.checkpoints) >= 1)
    started = below(process.pid)
    process.send_signal(number)
    process.wait(30)
    wait_for(lambda: not any(child.is_running() for child in started), 20)


@pytest.mark.faults
def test_two_ray_workers_end_as_they_do_undisturbed(digits: Path, tmp_path: Path) -> None:
    two = {"workers": 2, "cpus_per_worker": 1, "epochs": 5}
    for name in ("calm", "killed"):
        prepare(tmp_path / name, digits)
    step(tmp_path / "calm", **two)
    ran = Ran(tmp_path / "killed")

    def kill() -> None:
        wait_for(lambda: len(ran.checkpoints) >= 2)
        below(os.getpid(), "RayTrainWorker")[-1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    step(tmp_path / "killed", **two)
    killer.join()
    same_end(ran, Ran(tmp_path / "calm"))


@pytest.mark.parametrize("together", [True, False])
def test_two_workers_train_one_model_on_half_of_the_images_each(digits: Path, tmp_path: Path, together: bool) -> None:
    port = free_port()
    data = tmp_path / "data" / "data.yaml"
    data.parent.mkdir()
    data.write_text(digits.read_text().replace("path: .", f"path: {digits.parent}"))
    command = [sys.executable, "-m", "tests.pair"]
    pair = [
        subprocess.Popen([*command, str(rank), str(port), str(tmp_path), str(data), str(int(together))])
        for rank in (0, 1)
    ]
    assert [process.wait(200) for process in pair] == [0, 0]

    one, other = (dict(np.load(tmp_path / f"rank-{rank}.npz")) for rank in (0, 1))
    seen = [set(found.pop("seen_images")) for found in (one, other)]
    difference = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    assert [len(images) for images in seen] == [12, 12]
    assert not seen[0] & seen[1]
    assert (difference == 0.0) is together, f"weights differ by {difference}"


def refused(config: dict[str, object], **counts: int) -> UserError:
    """What the stage says to a configuration and a data set."""
    nothing = Blob(uri="file:///nowhere", sha256="", size=0)
    version = DatasetVersion(
        id="d",
        lineage=Lineage(code="c", image="i", run="r"),
        names=("a",),
        counts={"train": 24, "val": 8, "test": 40, **counts},
        index=nothing,
        holdouts=(),
    )
    with pytest.raises(UserError) as found:
        check(Train.of(**{**SMALL, **config}), version, Platform.local(Path("/nowhere")))
    return found.value


@pytest.mark.parametrize(
    ("config", "counts", "says"),
    [
        ({}, {"train": 0}, "0 train images"),
        ({}, {"val": 0}, "0 val images"),
        ({}, {"test": 0}, "0 test images"),
        ({"workers": 2, "cpus_per_worker": 1}, {"val": 1}, "1 val images, and 2"),
        ({"architecture": "yolo99n"}, {}, "'yolo99n'"),
        ({"workers": 64, "cpus_per_worker": 16, "batch": 64}, {"train": 99, "val": 99}, "1024, and this machine has"),
        ({"workers": 3, "batch": 8}, {}, "batch is 8: it cannot be divided evenly over 3"),
        ({"gpus_per_worker": 2}, {}, "a worker uses one GPU"),
    ],
)
def test_a_mistake_is_one_clear_message_before_a_job(
    config: dict[str, object], counts: dict[str, int], says: str
) -> None:
    error = refused(config, **counts)
    assert says in error.message
    assert error.next


def test_a_mistake_ends_the_step_as_the_users(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, digits)
    with pytest.raises(SystemExit) as ended:
        step(tmp_path, learning_rate=-1)
    assert ended.value.code == 2
    assert "learning_rate is -1" in capfd.readouterr().out
    assert not (tmp_path / "store" / "training").exists()


def release_of(package: ModelPackage, world: World) -> Release:
    return Release(
        id=content_id(package.id),
        lineage=LINEAGE,
        model="detector",
        version="1",
        package=package.id,
        package_uri=keep(world.store, package),
        dataset=package.dataset,
        report="report",
    )


def test_a_champion_of_other_classes_is_refused(world: World, digits: Path, tmp_path: Path) -> None:
    champion = release_of(block_package(world.store, tmp_path / "package"), world)
    config = Train.of(**{**SMALL, "start_from": "champion"})
    with pytest.raises(UserError, match=r"2 classes \(red, green\) are not the data set's 10"):
        parent_of(config, dataset_of(world.store, digits), champion, world.store)


def test_without_a_champion_the_first_training_starts_from_scratch(
    world: World, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Train.of(**{**SMALL, "start_from": "champion"})
    assert parent_of(config, dataset_of(world.store, digits), None, world.store) is None
    assert "starts from scratch" in capsys.readouterr().out


def test_a_champion_of_another_architecture_is_refused_before_ray(undisturbed: Ran) -> None:
    spec = spec_of(undisturbed, architecture="yolo11n", start_from="champion")
    with pytest.raises(UserError, match="'yolo11n', the champion's checkpoint is of 'narrow'"):
        check_in_job(spec, undisturbed.store)


def spec_of(ran: Ran, **config: object) -> TrainSpec:
    return TrainSpec(
        key="0123456789abcdef",
        platform=ran.platform,
        config=Train.of(**{**SMALL, **config}),
        dataset=DatasetVersion.read(ran.folder / "dataset.json"),
        parent=ran.package.checkpoint,
        lineage=LINEAGE,
    )


def test_a_job_that_goes_on_finds_its_mlflow_run(undisturbed: Ran) -> None:
    from mlflow import MlflowClient

    spec, said = spec_of(undisturbed), []
    first = Tracker.open(spec, said.append)
    first.log(undisturbed.package.curve[:2])
    second = Tracker.open(spec, said.append)
    second.log(undisturbed.package.curve)
    second.close("FINISHED")

    client = MlflowClient(spec.platform.tracking)
    assert second.run == first.run
    assert [point.step for point in client.get_metric_history(first.run, "map50")] == list(range(1, EPOCHS + 1))
    assert client.get_run(first.run).data.tags[JOB_TAG] == spec.name
    assert said == []


def test_mlflow_away_is_an_error_before_training(undisturbed: Ran) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        away = undisturbed.platform.but(tracking=address)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            with pytest.raises(PlatformError, match="cannot be used"):
                Tracker.open(spec_of(undisturbed).but(platform=away), print)


@pytest.mark.faults
def test_mlflow_away_during_training_is_a_line_and_nothing_is_lost(undisturbed: Ran) -> None:
    said: list[str] = []
    spec = spec_of(undisturbed).but(key="another")
    tracker = Tracker.open(spec, said.append)
    with closing(sqlite3.connect(undisturbed.platform.tracking.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")  # MLflow waits for 20 s
        tracker.log(undisturbed.package.curve[:1])
    tracker.log(undisturbed.package.curve[1:2])
    assert said[0].startswith("MLflow is away")
    assert said[1] == "MLflow answers again; 2 epochs were sent"
