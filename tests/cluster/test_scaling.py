"""How many pods a version has: by its load, which a metrics API of ours tells, and no less while there is a canary."""

from pathlib import Path
from typing import Any

import pytest
from kfp_flywheel.components.runtime.adapters.kserve.build import AUTOSCALER, BUDGET, SERVICE
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.config import Platform, Pods
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.components.runtime.ports import EndpointState, Served
from kfp_flywheel.components.runtime.wiring import open_store
from kfp_flywheel.pipelines.checks import Check
from kfp_flywheel.pipelines.doctor import examine
from kubernetes import client

from tests.canaries import release_of
from tests.releases import release, stable, with_champion
from tests.servers import S3
from tests.tiny import tiny_package
from tests.waiting import wait_for

from . import metrics_api
from .control import ControlPlane
from .fixtures import a_namespace, platform_on, platform_without_pods

SCALING = {"min_replicas": 2, "max_replicas": 4, "server_cpu": "100m", "target_cpu": 50}


def beside(state: EndpointState, canary: Served) -> EndpointState:
    """The state with a canary that has half of the traffic."""
    versions = {"v1": state.versions["v1"].but(weight=100 - canary.weight), "v2": canary}
    return state.but(versions=versions)


def autoscaler(there: KServe, version: str) -> dict[str, Any]:
    found = there.objects.get(AUTOSCALER, f"detector-{version}")
    assert found is not None
    spec: dict[str, Any] = found["spec"]
    return spec


@pytest.fixture
def there(cluster: client.ApiClient, namespace: str) -> KServe:
    platform = platform_without_pods(namespace)
    return KServe(platform.but(pods=Pods.of(**platform.pods.plain() | SCALING)))


def test_a_version_brings_its_autoscaler_and_takes_it_along(there: KServe, cluster: client.ApiClient) -> None:
    first = there.write(stable(there.read("detector"), "1"))
    spec = autoscaler(there, "v1")
    assert (spec["minReplicas"], spec["maxReplicas"], spec["behavior"]["scaleDown"]["selectPolicy"]) == (2, 4, "Max")
    assert there.objects.get(BUDGET, "detector-v1")["spec"]["maxUnavailable"] == 1  # type: ignore[index]
    apps = client.AppsV1Api(cluster)

    def replicas() -> int:
        found = apps.list_namespaced_deployment(there.namespace).items
        return found[0].spec.replicas if found else 0

    wait_for(lambda: replicas() == 2, 60, "the least number of pods, asked for by the controller manager")
    (deployment,) = apps.list_namespaced_deployment(there.namespace).items
    (spread,) = deployment.spec.template.spec.topology_spread_constraints
    assert (spread.topology_key, spread.when_unsatisfiable) == ("kubernetes.io/hostname", "ScheduleAnyway")
    both = there.write(beside(first, Served(release=release("2", "q"), weight=50)))
    assert autoscaler(there, "v1")["behavior"]["scaleDown"]["selectPolicy"] == "Disabled"
    assert autoscaler(there, "v2")["minReplicas"] == 2
    there.write(both.but(versions=first.versions))
    assert autoscaler(there, "v1")["behavior"]["scaleDown"]["selectPolicy"] == "Max"
    for kind in (SERVICE, AUTOSCALER, BUDGET):
        wait_for(lambda kind=kind: there.objects.get(kind, "detector-v2") is None, 30, f"the end of {kind.plural}")


def test_kserve_does_not_put_the_number_of_pods_back(there: KServe, cluster: client.ApiClient) -> None:
    there.write(stable(there.read("detector"), "1"))
    apps = client.AppsV1Api(cluster)
    wait_for(lambda: bool(apps.list_namespaced_deployment(there.namespace).items), 30)
    name = "detector-v1-predictor"
    wait_for(lambda: apps.read_namespaced_deployment(name, there.namespace).spec.replicas == 2, 60)
    apps.patch_namespaced_deployment_scale(name, there.namespace, {"spec": {"replicas": 3}})
    there.objects.patch(SERVICE, "detector-v1", {"metadata": {"annotations": {"looked": "at"}}})  # KServe looks again
    generation = apps.read_namespaced_deployment(name, there.namespace).metadata.generation
    wait_for(
        lambda: there.objects.get(SERVICE, "detector-v1")["metadata"]["annotations"].get("looked") == "at",
        20,  # type: ignore[index]
    )
    found = apps.read_namespaced_deployment(name, there.namespace)
    assert found.spec.replicas == 3
    assert found.metadata.generation <= generation + 1


def test_without_scaling_there_is_nothing_to_scale(cluster: client.ApiClient, namespace: str) -> None:
    there = KServe(platform_without_pods(namespace))
    there.write(stable(there.read("detector"), "1"))
    assert there.objects.get(AUTOSCALER, "detector-v1") is None
    assert there.objects.get(BUDGET, "detector-v1") is None


def test_fewer_at_most_than_at_least_is_refused() -> None:
    with pytest.raises(UserError, match="`max_replicas` is 1, less than min_replicas, 2"):
        Pods.of(min_replicas=2, max_replicas=1)


def scaling_of(platform: Platform, folder: Path) -> Check:
    (check,) = [check for check in examine(platform, folder, 0) if check.name == "scaling"]
    return check


def test_doctor_says_when_nothing_measures_the_load(there: KServe, tmp_path: Path) -> None:
    check = scaling_of(there.platform, tmp_path)
    assert not check.ok
    assert "no metrics API" in check.found
    assert "install metrics-server" in check.next


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_load_brings_pods_and_a_canary_takes_none_away(
    plane: ControlPlane, cluster: client.ApiClient, s3: S3, serve_image: str, tmp_path: Path
) -> None:
    apps = client.AppsV1Api(cluster)
    with a_namespace(cluster) as namespace, metrics_api.served(plane, cluster) as usage:
        platform = platform_on(namespace, s3, serve=serve_image)
        there = KServe(platform.but(pods=Pods.of(**platform.pods.plain() | SCALING)))
        assert scaling_of(there.platform, tmp_path).ok
        store = open_store(platform.store)
        one, two = (release_of(store, str(n), tiny_package(store, bias=n)) for n in (1, 2))

        def replicas(version: str) -> int:
            return int(apps.read_namespaced_deployment(f"detector-{version}-predictor", namespace).spec.replicas or 0)

        first = there.write(with_champion(there.read("detector"), one))
        wait_for(lambda: replicas("v1") == 2, 120)
        usage.by_app["isvc.detector-v1-predictor"] = 90  # of 100m, and 50 % is wanted
        wait_for(lambda: replicas("v1") == 4, 240, "four pods")
        both = there.write(beside(first, Served(release=two, weight=50)))
        assert autoscaler(there, "v2")["minReplicas"] == 2
        usage.by_app["isvc.detector-v1-predictor"] = 5  # the canary has the other half
        wait_for(lambda: replicas("v2") == 2, 120)
        found = client.AutoscalingV2Api(cluster)

        def wants_less() -> bool:
            status = found.read_namespaced_horizontal_pod_autoscaler_status("detector-v1", namespace).status
            limited = [one for one in status.conditions or () if one.type == "ScalingLimited" and one.status == "True"]
            return status.desired_replicas == 4 and bool(limited or status.current_metrics)

        wait_for(wants_less, 120)
        assert replicas("v1") == 4
        there.write(both.but(versions=first.versions))
        wait_for(lambda: replicas("v1") == 2, 500, "fewer pods, when the canary is gone")
