"""The whole flywheel on the platform of a cluster, as the README tells it: the same detector as on one machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import yaml
from kfp_flywheel.components.runtime.adapters.kubernetes import connect as connect_api
from kfp_flywheel.components.runtime.artifacts import ModelPackage
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.manifests import find
from kfp_flywheel.components.runtime.step import StepRecord, run_records
from kfp_flywheel.components.runtime.wiring import connect
from kfp_flywheel.pipelines import running
from kubernetes import client

from tests import servers

from .control import ControlPlane
from .prometheus import Prometheus

REPO = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (REPO / "README.md").read_text(), flags=re.DOTALL)
STEPS = ["resolve", "ingest", "validate", "snapshot", "train", "evaluate", "register", "rollout"]


def block(kind: str, number: int) -> str:
    """A snippet of the README."""
    return [text for found, text in BLOCKS if found == kind][number]


def write_files(folder: Path, platform: Platform, image: Path) -> None:
    """What the README has a person write, with the addresses of this cluster in it."""
    document = yaml.safe_load(block("yaml", 1))
    here = platform.plain()
    document |= {name: here[name] for name in ("store", "jobs", "serving", "tracking", "telemetry", "gateway")}
    document["pods"] |= {name: here["pods"][name] for name in ("env", "host_paths", "head_memory", "worker_memory")}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(document))
    (folder / "build").mkdir()
    (folder / "build/images.yaml").write_text(yaml.safe_dump(here["images"]))
    small = yaml.safe_load(block("yaml", 0)) | {"epochs": 8, "cpus_per_worker": 1}  # the node has two
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    shutil.copy(image, folder / "image.jpg")


def last_run(platform: Platform) -> list[StepRecord]:
    store = connect(platform).store
    runs = {key.split("/")[1] for key in store.list("runs/")}
    return max((run_records(store, run) for run in runs), key=lambda records: records[-1].started)


def package_of(records: list[StepRecord], platform: Platform) -> ModelPackage:
    (made,) = [record.artifact for record in records if record.step == "train"]
    return find(connect(platform).store, made, ModelPackage)


def test_the_same_pipeline_makes_the_same_detector_on_a_cluster(
    plane: ControlPlane,
    cluster_platform: Platform,
    serve_image: str,
    prometheus: Prometheus,
    tracking: str,
    shapes: Path,
    namespace: str,
    tmp_path: Path,
) -> None:
    there = cluster_platform.but(images=cluster_platform.images | {"serve": serve_image}, tracking=tracking)
    here = Platform.local(tmp_path / "local")
    for path in shapes.parent.rglob("*.*"):
        key = f"{namespace}/shapes/{path.relative_to(shapes.parent)}"
        boto3.client("s3").put_object(Bucket=servers.BUCKET, Key=key, Body=path.read_bytes())
    picture = next((shapes.parent / "images" / "test").iterdir())
    write_files(tmp_path, there, picture)
    plane.kubectl("apply", "-n", namespace, "-f", str(REPO / "manifests/base/steps.yaml"))

    def follow_the_readme() -> list[StepRecord]:
        script = block("sh", 1).replace("s3://bucket/pets", f"{there.store}/shapes")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return last_run(there)

    first = follow_the_readme()
    assert [record.step for record in first] == [*STEPS, "notify"]
    assert first[-2].sentence.startswith("Promoted: ")
    assert (tmp_path / "image.boxes.jpg").stat().st_size > 0

    flywheel = [str(Path(sys.executable).with_name("flywheel"))]
    for words, steps, says in (
        (("batch", "--images", f"{there.store}/shapes/images/test", "-p", "cpus_per_worker=1"), ["resolve", "predict"],
         f"{len(list(picture.parent.iterdir()))} images: "),
        (("monitor",), ["monitor"], "undecided: "),
    ):  # fmt: skip
        given = [*flywheel, *words, "--platform", "cluster.yaml"]
        done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True)
        made = last_run(there)
        assert [record.step for record in made] == [*steps, "notify"], done.stdout + done.stderr
        assert made[-2].sentence.startswith(says), made

    small = yaml.safe_load((tmp_path / "small.yaml").read_text())
    parameters = running.read_parameters(str(shapes), None, [f"{name}={value}" for name, value in small.items()])
    running.run(parameters, here, tmp_path / "local", 0, quiet=True)
    ours, theirs = package_of(last_run(here), here), package_of(first, there)
    assert (ours.checkpoint.digest, ours.id) == (theirs.checkpoint.digest, theirs.id)

    assert [record.step for record in follow_the_readme()] == [*STEPS[:4], "notify"]
    custom = client.CustomObjectsApi(connect_api())
    for plural in ("rayjobs", "rayclusters"):
        assert custom.list_namespaced_custom_object("ray.io", "v1", namespace, plural)["items"] == []
