"""`flywheel doctor` on a real API server: content when all is there, and for each thing that is broken it says so."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_flywheel.components.runtime.adapters import cluster as asking
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.pipelines.checks import Check
from kfp_flywheel.pipelines.doctor import examine
from kubernetes import client

from tests.servers import free_port
from tests.waiting import wait_for

from .control import ControlPlane
from .fixtures import SERVE_IMAGE, a_namespace, platform_without_pods

REPO = Path(__file__).parents[2]
IMAGES = dict.fromkeys(("steps", "train", "serve"), SERVE_IMAGE)


@pytest.fixture(scope="module")
def sound(
    plane: ControlPlane, cluster: client.ApiClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """A platform of which nothing is missing."""
    with a_namespace(cluster) as namespace:
        plane.kubectl("apply", "-n", namespace, "-f", str(REPO / "manifests/base/steps.yaml"))
        client.CoreV1Api(cluster).create_namespaced_secret(
            namespace, {"metadata": {"name": "store"}, "stringData": {"KEY": "1"}}
        )
        local = Platform.local(tmp_path_factory.mktemp("sound")).plain()
        yield Platform.of(
            **platform_without_pods(namespace).plain()
            | {name: local[name] for name in ("store", "tracking")}
            | {"images": IMAGES, "pods": {"service_account": "flywheel", "secrets": {"store": ["KEY"]}}}
        )


def looked(platform: Platform, folder: Path) -> list[Check]:
    return examine(platform, folder, 0)


def wrong(platform: Platform, folder: Path) -> list[Check]:
    return [check for check in looked(platform, folder) if not check.ok]


def test_where_all_is_there_it_is_content(sound: Platform, tmp_path: Path) -> None:
    found = looked(sound, tmp_path)
    assert [check for check in found if not check.ok] == []
    assert {"cluster", "images", "kuberay", "rights", "gpus", "kserve", "gateway", "account", "secret"} <= {
        check.name for check in found
    }


def changed(platform: Platform, **changes: Any) -> Platform:
    plain = platform.plain()
    for name, value in changes.items():
        plain[name] = plain[name] | value if isinstance(value, dict) and name != "images" else value
    return Platform.of(**plain)


@pytest.mark.parametrize(
    ("name", "changes", "found", "remedy"),
    [
        ("images", {"images": {"serve": SERVE_IMAGE}}, "no image of train is named", "make images"),
        ("images", {"images": IMAGES | {"train": "train:1"}}, "images.train is train:1: a tag", "make images"),
        ("gateway", {"gateway": {"name": "kserve/other"}}, "no Gateway kserve/other", "kubectl get gateways"),
        ("gateway", {"gateway": {"address": f"http://127.0.0.1:{free_port()}"}}, "does not answer", "gateway.address"),
        ("account", {"pods": {"service_account": "nobody"}}, "nobody is not in", "kubectl apply"),
        ("secret", {"pods": {"secrets": {"store": ["KEY", "OTHER"]}}}, "has no OTHER", "create secret generic store"),
        ("secret", {"pods": {"secrets": {"gone": ["KEY"]}}}, "secret gone in .* has no KEY", "--from-literal=KEY=…"),
        ("scaling", {"pods": {"max_replicas": 4}}, "has no metrics API", "install metrics-server"),
        ("telemetry", {"telemetry": f"prometheus+http://127.0.0.1:{free_port()}"}, "does not answer", "Prometheus"),
        ("store", {"store": "file:///proc/nowhere"}, "/proc", ""),
        ("tracking", {"tracking": "sqlite:////proc/nowhere/mlflow.db"}, "nowhere", ""),
    ],
)
def test_what_is_missing_is_named_with_what_mends_it(
    name: str, changes: dict[str, Any], found: str, remedy: str, sound: Platform, tmp_path: Path
) -> None:
    (check,) = wrong(changed(sound, **changes), tmp_path)
    assert check.name == name
    assert re.search(found, check.found), check
    assert remedy in check.next


def test_kubeflow_has_to_answer_and_its_steps_need_secrets_and_rights_of_their_own(
    plane: ControlPlane, cluster: client.ApiClient, sound: Platform, tmp_path: Path
) -> None:
    with a_namespace(cluster) as home:
        asked = changed(sound, runs=f"kfp+http://127.0.0.1:{free_port()}?namespace={home}")
        found = {check.name: check for check in wrong(asked, tmp_path)}
        assert found.keys() == {"secret", "rights", "kubeflow"}
        assert found["secret"].found == f"secret store in {home} has no KEY"
        assert re.search(f"{home}:default-editor, may not .*create rayjobs.ray.io", found["rights"].found)
        assert "port-forward" in found["kubeflow"].next
        for mended in ("secret", "rights"):
            plane.kubectl(*found[mended].next.replace("…", "1").split()[1:])
        assert [check.name for check in wrong(asked, tmp_path)] == ["kubeflow"]


@contextmanager
def unserved(cluster: client.ApiClient, name: str, version: str) -> Iterator[None]:
    """A kind that the cluster does not serve in a version, as before its operator was installed."""
    crds = client.ApiextensionsV1Api(cluster)

    def serve(served: bool) -> None:
        found = crds.read_custom_resource_definition(name)
        for each in found.spec.versions:
            if each.name == version:
                each.served = served
        crds.replace_custom_resource_definition(name, found)
        plural, _, group = name.partition(".")
        wait_for(lambda: (plural in asking.Cluster().resources(group, version)) == served, 30)

    serve(False)
    try:
        yield
    finally:
        serve(True)


@pytest.mark.parametrize(
    ("kind", "version", "name", "remedy"),
    [
        ("rayjobs.ray.io", "v1", "kuberay", "install KubeRay"),
        ("inferenceservices.serving.kserve.io", "v1beta1", "kserve", "install KServe"),
        ("httproutes.gateway.networking.k8s.io", "v1", "gateway", "install the Gateway API"),
    ],
)
def test_a_kind_that_the_cluster_has_not_got_is_named_with_what_brings_it(
    kind: str, version: str, name: str, remedy: str, cluster: client.ApiClient, sound: Platform, tmp_path: Path
) -> None:
    with unserved(cluster, kind, version):
        found = {check.name: check for check in wrong(sound, tmp_path)}
    assert found[name].found == f"the cluster has no {kind} in version {version}"
    assert remedy in found[name].next


def test_rights_that_are_missing_are_listed_and_those_of_the_steps_suffice(
    plane: ControlPlane, cluster: client.ApiClient, sound: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = sound.serving.removeprefix("kserve://")
    token = client.CoreV1Api(cluster).create_namespaced_service_account_token("flywheel-steps", namespace, {"spec": {}})
    config = yaml.safe_load(plane.places.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token.status.token}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    found = looked(sound, tmp_path)
    assert asking.Cluster().denied(namespace, "rayjob", "kubeflow:pipeline-runner") is None
    assert [check for check in found if check.name == "rights" and not check.ok] == []
    # What a step may not see is not called missing.
    unseen = {check.name: check for check in found if "unknown" in check.found}
    assert {"gpus", "account", "secret"} <= unseen.keys()
    assert all(check.ok for check in unseen.values())
    client.RbacAuthorizationV1Api(cluster).delete_namespaced_role_binding("flywheel-steps", namespace)
    rights = [check for check in wrong(sound, tmp_path) if check.name == "rights"]
    assert "for training" in rights[0].found
    assert "create rayjobs.ray.io" in rights[0].found
    assert "update httproutes.gateway.networking.k8s.io" in rights[1].found
    assert all(f"kubectl apply -n {namespace}" in check.next for check in rights)
    plane.kubectl("apply", "-n", namespace, "-f", str(REPO / "manifests/base/steps.yaml"))


def test_a_cluster_that_is_away_is_told_once(sound: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubeconfig").write_text("apiVersion: v1\nkind: Config\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    (check,) = wrong(sound, tmp_path)
    assert check.name == "cluster"
    assert "KUBECONFIG" in check.next


def gateway(namespace: str, **spec: Any) -> dict[str, Any]:
    listener = {"name": "http", "protocol": "HTTP", "port": 8000, **spec}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "theirs", "namespace": namespace},
        "spec": {"gatewayClassName": "nobodys", "listeners": [listener]},
    }


def test_a_gateway_that_no_controller_has_taken_is_told(
    cluster: client.ApiClient, sound: Platform, tmp_path: Path
) -> None:
    namespace = sound.serving.removeprefix("kserve://")
    client.CustomObjectsApi(cluster).create_namespaced_custom_object(
        "gateway.networking.k8s.io", "v1", namespace, "gateways", gateway(namespace)
    )
    (check,) = wrong(changed(sound, gateway={"name": f"{namespace}/theirs"}), tmp_path)
    assert "is not programmed" in check.found


def test_the_rights_that_are_looked_for_are_those_that_the_manifest_gives() -> None:
    role = next(
        each for each in yaml.safe_load_all((REPO / "manifests/base/steps.yaml").read_text()) if each["kind"] == "Role"
    )
    given = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    wanted = {
        (group, resource, verb)
        for rights in asking.RIGHTS.values()
        for group, resource, verbs in rights
        for verb in verbs.split()
    }
    assert wanted <= given
