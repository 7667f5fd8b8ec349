"""The manifests on a real API server: accepted whole, applied over a former version, and taken away again."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.installed import MADE
from kfp_flywheel.components.runtime.adapters.kserve.build import ROUTE, SERVICE
from kfp_flywheel.components.runtime.adapters.kserve.reconciler import deployment
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.adapters.pods import MANAGED
from kfp_flywheel.components.runtime.adapters.rayjob.jobs import RayJobs
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.pipelines.uninstall import uninstall
from kubernetes import client

from tests.releases import stable
from tests.waiting import wait_for

from . import programs, schemas
from .control import ControlPlane
from .fixtures import SERVE_IMAGE, platform_without_pods
from .installing import COMPONENTS, OVERLAYS, overlay, rendered
from .waiter import NOWHERE, waiting

IMAGE = SERVE_IMAGE.replace("serve@", "steps@")


KNOWN = [name for name in COMPONENTS if name != "queue"]
"""Of Kueue there is no definition here; its LocalQueue has one field."""


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_is_accepted_whole(name: str, plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    folder = overlay(tmp_path, name, namespace, *KNOWN)
    said = plane.kubectl("apply", "-k", str(folder), "--dry-run=server", "--validate=strict")
    objects = rendered(plane, folder)
    assert said.count("(server dry run)") == len(objects)
    assert {one["kind"] for one in objects} - {"Namespace"} <= MADE.keys(), "flywheel uninstall would not find it"
    assert {one["metadata"].get("namespace", namespace) for one in objects} == {namespace}
    for binding in (one for one in objects if one["kind"] == "RoleBinding"):
        (subject,) = binding["subjects"]
        of_kubeflow = subject["name"] == "pipeline-runner"
        assert subject["namespace"] == ("kubeflow" if of_kubeflow else namespace)


@pytest.fixture(scope="module")
def everything(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that there is, in one file: an overlay with every component, and what `flywheel compile` adds."""
    folder, platform = tmp_path_factory.mktemp("everything"), platform_without_pods("flywheel")
    objects = rendered(plane, overlay(folder / "overlay", "kind", "flywheel", *KNOWN))
    objects.append(deployment(platform.but(images=platform.images | {"steps": IMAGE})))
    (folder / "all.yaml").write_text(yaml.safe_dump_all(objects))
    return folder / "all.yaml"


def says(plane: ControlPlane, module: programs.Module, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the one program of a module."""
    programs.build_one(plane.places, module, plane.say)
    (name,) = module.programs
    return subprocess.run([programs.path(plane.places, name), *arguments], capture_output=True, text=True)


def test_kubeconform_has_nothing_to_say(plane: ControlPlane, everything: Path, tmp_path: Path) -> None:
    place = schemas.write(plane, tmp_path, yaml.safe_load_all(everything.read_text()))
    options = ("-strict", "-summary", "-schema-location", place)
    done = says(plane, programs.KUBECONFORM, *options, str(everything))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Invalid: 0, Errors: 0, Skipped: 0" in done.stdout
    wrong = yaml.safe_dump_all(
        yaml.safe_load_all(everything.read_text().replace("automountService", "autoMountService"))
    )
    (tmp_path / "wrong.yaml").write_text(wrong)
    assert (
        "additional properties 'autoMountServiceAccountToken' not allowed"
        in says(plane, programs.KUBECONFORM, *options, str(tmp_path / "wrong.yaml")).stdout
    )


def test_kube_score_has_nothing_to_say(plane: ControlPlane, everything: Path) -> None:
    """What is right of one object and yet not to its taste is exempted beside it, with the reason."""
    ours = (
        "--ignore-container-cpu-limit",  # it takes away what nobody else uses
        "--ignore-test=container-image-pull-policy",  # a digest, or a version, is what it was
        "--ignore-test=container-security-context-user-group-id",  # images have their users
        "--ignore-test=pod-networkpolicy",  # who may come in is tested above; where to, is not restricted
    )
    done = says(plane, programs.KUBE_SCORE, "score", "--output-format=ci", *ours, str(everything))
    assert [line for line in done.stdout.splitlines() if not line.startswith(("[OK]", "[SKIPPED]"))] == []
    assert (done.returncode, done.stdout.count("[OK]") > 50) == (0, True), done.stderr


def installed(plane: ControlPlane, platform: Platform, folder: Path, version: str) -> None:
    """Apply everything, as of a version."""
    labels = [{"pairs": {"app.kubernetes.io/version": version}}]
    namespace = platform.serving.removeprefix("kserve://")
    plane.kubectl("apply", "-k", str(overlay(folder, "kind", namespace, labels=labels)))
    plane.kubectl("apply", "-f", "-", text=yaml.safe_dump(deployment(platform)))


def state(serving: KServe) -> dict[str, Any]:
    """What an endpoint consists of, whoever looks at it."""
    found = [*serving.objects.list(ROUTE, ""), *serving.objects.list(SERVICE, "")]
    return {one["kind"]: (one["metadata"]["uid"], one["metadata"]["generation"], one["spec"]) for one in found}


def test_a_next_version_leaves_endpoints_as_they_are(
    plane: ControlPlane, cluster: client.ApiClient, namespace: str, tmp_path: Path
) -> None:
    platform = platform_without_pods(namespace)
    platform = platform.but(images=platform.images | {"steps": IMAGE})
    installed(plane, platform, tmp_path, "0.1.0")
    serving, apps = KServe(platform), client.AppsV1Api(cluster)
    serving.write(stable(serving.read("detector"), "1"))
    wait_for(lambda: len(apps.list_namespaced_deployment(namespace, label_selector="flywheel/endpoint").items) == 1, 20)
    before = state(serving)
    assert before.keys() == {"HTTPRoute", "InferenceService"}
    installed(plane, platform.but(images=platform.images | {"steps": IMAGE.replace("0000", "1111")}), tmp_path, "9.9.9")
    assert state(serving) == before
    role = client.RbacAuthorizationV1Api(cluster).read_namespaced_role("flywheel-steps", namespace)
    assert role.metadata.labels["app.kubernetes.io/version"] == "9.9.9"
    image = apps.read_namespaced_deployment("flywheel-reconciler", namespace).spec.template.spec.containers[0].image
    assert "1111" in image


def pods_of(core: client.CoreV1Api, namespace: str, selector: str) -> list[dict[str, Any]]:
    items = core.list_namespaced_pod(namespace, label_selector=selector).items
    found: list[dict[str, Any]] = core.api_client.sanitize_for_serialization(items)
    return found


def listens(pod: Mapping[str, Any]) -> set[int]:
    ports = [port for one in pod["spec"]["containers"] for port in one.get("ports", ())]
    return {port["containerPort"] for port in ports}


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As Kubernetes has it, for what is used here."""
    found = [labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()]
    for one in selector.get("matchExpressions", ()):
        among = labels.get(one["key"]) in one["values"] if one["operator"] == "In" else one["key"] in labels
        found.append(among)
    return all(found)


class Peer:
    """Who asks: a namespace, and labels of a pod."""

    def __init__(self, namespace: str, labels: Mapping[str, str]) -> None:
        self.namespace, self.labels = namespace, labels

    def may_reach(self, policies: list[dict[str, Any]], target: "Peer", port: int) -> bool:
        mine = [one for one in policies if matches(one["spec"]["podSelector"], target.labels)]
        rules = [rule for one in mine for rule in one["spec"].get("ingress", ())]
        return not mine or any(
            any(self._is(peer, target.namespace) for peer in rule["from"])
            and port in [one["port"] for one in rule.get("ports", [{"port": port}])]
            for rule in rules
        )

    def _is(self, peer: Mapping[str, Any], home: str) -> bool:
        where = {"kubernetes.io/metadata.name": self.namespace}
        there = matches(peer["namespaceSelector"], where) if "namespaceSelector" in peer else self.namespace == home
        return there and matches(peer.get("podSelector", {}), self.labels)


def test_every_port_is_open_to_whom_it_is_for_and_to_nobody_else(
    plane: ControlPlane, cluster: client.ApiClient, namespace: str, tmp_path: Path
) -> None:
    """By labels and ports of pods that controllers really make, in a namespace as restricted as ours."""
    platform = platform_without_pods(namespace)
    platform = platform.but(images=platform.images | {"steps": IMAGE})
    installed(plane, platform, tmp_path, "0.1.0")
    serving, core = KServe(platform), client.CoreV1Api(cluster)
    serving.write(stable(serving.read("detector"), "1"))
    RayJobs(namespace, NOWHERE).submit(waiting(workers=1))
    names = ("flywheel-reconciler", "mlflow", "mlflow-postgresql", "store")
    selectors = {name: f"app.kubernetes.io/name={name}" for name in names}
    selectors |= {"model": "flywheel/endpoint", "head": "ray.io/node-type=head", "worker": "ray.io/node-type=worker"}
    pods = dict[str, dict[str, Any]]()
    for name, selector in selectors.items():
        wait_for(lambda selector=selector: bool(pods_of(core, namespace, selector)), 30, name)  # type: ignore[misc]
        pods[name] = pods_of(core, namespace, selector)[0]
    here = {name: Peer(namespace, pod["metadata"]["labels"]) for name, pod in pods.items()}
    here["submitter"] = Peer(namespace, MANAGED | {"batch.kubernetes.io/job-name": "train-1"})
    elsewhere = {
        "gateway": Peer("envoy-gateway-system", {}),
        "prometheus": Peer("monitoring", {}),
        "kuberay": Peer("kuberay-system", {"app.kubernetes.io/component": "kuberay-operator"}),
        "kubeflow": Peer("kubeflow", {}),
        "stranger": Peer("default", {"app.kubernetes.io/component": "kuberay-operator", **MANAGED}),
    }
    rays, inside = {"head", "worker"}, {*here}
    wanted = {
        ("model", 8080): {"gateway", "prometheus"},
        ("flywheel-reconciler", 9100): {"prometheus"},
        ("mlflow", 5000): inside | {"kubeflow"},
        ("mlflow-postgresql", 5432): {"mlflow"},
        ("store", 8333): inside | {"kubeflow"},
        **{("head", port): rays for port in listens(pods["head"])},
        ("head", 8265): {*rays, "submitter", "kuberay"},
        **{("worker", port): rays for port in listens(pods["worker"])},
    }
    policies = [one for one in rendered(plane, tmp_path) if one["kind"] == "NetworkPolicy"]
    other = 22222
    for name, pod in pods.items():
        for port in listens(pod) | {port for one, port in wanted if one == name} | {other}:
            may = {who for who, peer in {**here, **elsewhere}.items() if peer.may_reach(policies, here[name], port)}
            assert may == (rays if name in rays and port == other else wanted.get((name, port), set())), (name, port)


def test_uninstall_tells_then_refuses_what_serves_then_leaves_only_data(
    plane: ControlPlane, cluster: client.ApiClient, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    platform = platform_without_pods(namespace).but(store=f"file://{tmp_path}/store")
    platform = platform.but(images=platform.images | {"steps": IMAGE})
    installed(plane, platform, tmp_path / "overlay", "0.1.0")
    serving = KServe(platform)
    serving.write(stable(serving.read("detector"), "1"))
    RayJobs(namespace, NOWHERE).submit(waiting())

    told = uninstall(platform, yes=False, endpoints=True, by="me")
    assert [one["name"] for one in told["endpoints"]] == ["detector"]
    assert [one["name"] for one in told["jobs"]] == ["train-1"]
    assert {"flywheel-reconciler", "flywheel-steps", "flywheel-nobody"} <= {one["name"] for one in told["goes"]}
    with pytest.raises(UserError, match="detector serves"):
        uninstall(platform, yes=True, endpoints=False, by="me")
    with pytest.raises(UserError, match=r"train-1 is at work"):
        uninstall(platform, yes=True, endpoints=True, by="me")
    plane.kubectl("delete", "-n", namespace, "rayjob", "train-1")
    assert uninstall(platform, yes=False, endpoints=True, by="me") == told | {"jobs": []}, "nothing was removed"

    file = tmp_path / "cluster.yaml"
    file.write_text(platform.line())
    command = [sys.executable, "-m", "kfp_flywheel.pipelines.cli", "uninstall", "--platform", str(file)]
    done = subprocess.run([*command, "--yes", "--endpoints", "--json"], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["goes"]) == (0, told["goes"]), done.stderr
    again = uninstall(platform, yes=False, endpoints=False, by="me")
    assert (again["endpoints"], again["goes"]) == ([], [])
    assert {one["name"] for one in again["stays"]} >= {"mlflow", "mlflow-postgresql", "store", platform.store}
    wait_for(lambda: serving.objects.list(SERVICE, "") == [], 30, "the end of its versions")
    assert ledger.history(LocalStore(platform.store), "detector")[-1].reason == "uninstalled."
    accounts = client.CoreV1Api(cluster).list_namespaced_service_account(namespace).items
    assert {one.metadata.name for one in accounts} == {"default", "mlflow", "mlflow-postgresql", "store"}
