"""The whole flywheel on the platform of a cluster: the same pipeline, the same detector, other URIs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
from kfp_flywheel.components.runtime.adapters.kubernetes import connect as connect_api
from kfp_flywheel.components.runtime.artifacts import ModelPackage
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.manifests import find
from kfp_flywheel.components.runtime.wiring import connect
from kfp_flywheel.pipelines import asking, running
from kubernetes import client

from tests import servers

STEPS = ["resolve", "ingest", "validate", "snapshot", "train", "evaluate", "register", "rollout"]
SMALL = {
    "architecture": "narrow",
    "image_size": 96,
    "epochs": 8,
    "batch": 8,
    "learning_rate": 0.01,
    "mosaic": 0.0,
    "cpus_per_worker": 1,
    "min_map50": 0.3,
    "min_class_map50": 0.0,
}


def flywheel(platform: Platform, source: str, folder: Path) -> dict[str, Any]:
    """`flywheel run --platform FILE`; gives its document."""
    file, config = folder / "cluster.yaml", folder / "small.yaml"
    file.write_bytes(platform.to_json())
    config.write_text(json.dumps(SMALL))
    command = [sys.executable, "-m", "kfp_flywheel.pipelines.cli", "run", "--platform", str(file), "--json"]
    command += ["--config", str(config), "--data", source, "--root", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ended: dict[str, Any] = json.loads(done.stdout)
    return ended


def package_of(steps: list[dict[str, Any]], platform: Platform) -> ModelPackage:
    (made,) = [step["artifact"] for step in steps if step["step"] == "train"]
    return find(connect(platform).store, made, ModelPackage)


def test_the_same_pipeline_makes_the_same_detector_on_a_cluster(
    cluster_platform: Platform, serve_image: str, tracking: str, shapes: Path, namespace: str, tmp_path: Path
) -> None:
    there = cluster_platform.but(images=cluster_platform.images | {"serve": serve_image}, tracking=tracking)
    here = Platform.local(tmp_path / "local")
    for path in shapes.parent.rglob("*.*"):
        key = f"{namespace}/shapes/{path.relative_to(shapes.parent)}"
        boto3.client("s3").put_object(Bucket=servers.BUCKET, Key=key, Body=path.read_bytes())

    ended = flywheel(there, f"{there.store}/shapes", tmp_path)
    assert [step["step"] for step in ended["steps"]] == STEPS
    assert ended["decision"] == "promote"

    parameters = running.read_parameters(str(shapes), None, [f"{name}={value}" for name, value in SMALL.items()])
    local = running.run(parameters, here, tmp_path / "local", 0, quiet=True)
    ours, theirs = package_of([step.plain() for step in local.run.steps], here), package_of(ended["steps"], there)
    assert (ours.checkpoint.digest, ours.id) == (theirs.checkpoint.digest, theirs.id)

    picture = next((shapes.parent / "images" / "test").iterdir())
    answer = asking.predict(picture, "detector", tmp_path / "boxes.png", there)
    assert answer["detections"]
    assert asking.status("detector", there)["versions"]["v1"]["ready"]

    again = flywheel(there, f"{there.store}/shapes", tmp_path)
    assert [step["step"] for step in again["steps"]] == STEPS[:4]
    custom = client.CustomObjectsApi(connect_api())
    for plural in ("rayjobs", "rayclusters"):
        assert custom.list_namespaced_custom_object("ray.io", "v1", namespace, plural)["items"] == []
