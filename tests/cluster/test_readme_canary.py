"""README's "Canaries there", followed as it is written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kfp_flywheel.components.register.stage import register
from kfp_flywheel.components.register.stage import release_of as registered
from kfp_flywheel.components.runtime.adapters.kserve.build import ROUTE
from kfp_flywheel.components.runtime.artifacts import EvalReport, ModelPackage, Release
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.manifests import find, keep
from kfp_flywheel.components.runtime.wiring import World, connect
from kubernetes import client

from tests import servers
from tests.canaries import release_of
from tests.servers import S3
from tests.tiny import LINEAGE, tiny_images, tiny_package
from tests.waiting import wait_for

from . import programs
from .control import NODE_IP, ControlPlane
from .fixtures import REPO, platform_on
from .prometheus import Prometheus
from .rollouts import answers, services, users, weights
from .test_flywheel import BLOCKS

AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "test"), ("EMAIL", "test@example.com"))
}


def released(world: World, version: str, package: ModelPackage) -> Release:
    """A release that stands in the registry, as register leaves it."""
    made = release_of(world.store, version, package)
    report = find(world.store, made.report, EvalReport)
    uri = keep(world.store, package)
    number, _ = register(world.mlflow, "detector", package, report, uri)
    assert number == version
    found = registered("detector", number, package, report, uri, LINEAGE).but(dataset=made.dataset)
    keep(world.store, found)
    return found


@pytest.fixture
def there(
    namespace: str, s3: S3, serve_image: str, train_image: str, prometheus: Prometheus, tmp_path: Path
) -> Iterator[Platform]:
    """A platform with an MLflow of its own: other tests have models of this name."""
    platform = platform_on(namespace, s3, serve=serve_image, steps=train_image)
    with servers.mlflow(tmp_path, NODE_IP) as url:
        yield platform.but(tracking=url)


def test_the_readme_is_followed(plane: ControlPlane, there: Platform, tmp_path: Path, namespace: str) -> None:
    world = connect(there)
    released(world, "1", tiny_package(world.store))
    released(world, "2", tiny_package(world.store, bias=1.001))
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(there.plain() | {"pods": there.pods.plain()}))
    (tmp_path / "images").mkdir()
    for number, image in enumerate(tiny_images(20)):
        (tmp_path / "images" / f"{number}.png").write_bytes(image)
    (script,) = [text for kind, text in BLOCKS if kind == "sh" and "reconciler.yaml" in text]
    for path in ("components/monitoring/monitoring.yaml", "base/reconciler.yaml"):
        plane.kubectl("apply", "-n", namespace, "-f", str(REPO / "manifests" / path))
    script = script.replace("--version 2", "--version 2 -p look_s=0.5")
    script += "\nflywheel traffic images --seconds 3 --platform cluster.yaml\n"
    path = f"{Path(sys.executable).parent}:{kubectl_in(plane, tmp_path)}:{os.environ['PATH']}"

    def followed(commands: str) -> str:
        environment = os.environ | {"PATH": path} | AUTHOR
        given = ["bash", "-ec", commands]
        done = subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    followed("git init -q -b main git; git -C git commit -qm begin --allow-empty; git -C git checkout -qb mine")
    followed("flywheel rollout --platform cluster.yaml --version 1 --git git")
    with users(world, "detector") as seen:
        wait_for(lambda: seen.asked("v1") > 200)
        said = followed(script)
        assert weights(world, "detector") == {"v2": 100}
        followed("flywheel rollback --platform cluster.yaml")
        assert weights(world, "detector") == {"v1": 100}
    assert [one for one in seen.sent if one.status != 200] == []
    assert "v2 was promoted" in said
    apps = client.AppsV1Api(world.serving.objects.api.api_client)  # type: ignore[attr-defined]
    wait_for(
        lambda: apps.read_namespaced_deployment("flywheel-reconciler", namespace).status.available_replicas == 2, 90
    )
    followed(f"kubectl -n {namespace} delete httproute detector")
    wait_for(lambda: services(world, "detector") == set(), 60)
    followed(f"git clone -q -b main git there; kubectl -n {namespace} apply -k there/endpoints/detector")
    wait_for(lambda: answers(world.serving.url("detector"), "detector") == "v1", 90)
    homes = {"detector": world.serving.objects.get(ROUTE, "detector")}  # type: ignore[attr-defined]
    wait_for(lambda: world.serving.untidy([world.serving.read("detector")], homes)["detector"] == "", 30)  # type: ignore[attr-defined]


def kubectl_in(plane: ControlPlane, folder: Path) -> Path:
    """A folder with the cluster's kubectl in it."""
    place = folder / "bin"
    place.mkdir()
    shutil.copy(programs.path(plane.places, "kubectl"), place / "kubectl")
    return place
