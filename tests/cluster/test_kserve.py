"""Endpoints on a real API server with KServe's controller and webhooks; no node is needed."""

from typing import Any

import pytest
from kfp_flywheel.components.runtime.adapters.kserve.build import ROUTE, RUNTIME, SERVICE, service
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.kubernetes import explained
from kfp_flywheel.components.runtime.config import Pods
from kfp_flywheel.components.runtime.errors import Conflict, Corrupt, UserError
from kfp_flywheel.components.runtime.ports import Served
from kubernetes import client

from tests.releases import release, stable
from tests.waiting import wait_for

from .control import GATEWAY
from .fixtures import SERVE_IMAGE, platform_without_pods


class There:
    """KServe in a namespace, and a look at what is really there."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.objects, self.namespace = client.CustomObjectsApi(api), namespace
        self.serving = KServe(platform_without_pods(namespace))

    def names(self, kind: tuple[str, str, str]) -> list[str]:
        found = self.objects.list_namespaced_custom_object(*kind[:2], self.namespace, kind[2])["items"]
        return sorted(item["metadata"]["name"] for item in found)

    def route(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.objects.get_namespaced_custom_object(*ROUTE[:2], self.namespace, ROUTE[2], name)
        return found


@pytest.fixture
def there(cluster: client.ApiClient, namespace: str) -> There:
    return There(cluster, namespace)


def test_a_version_is_an_immutable_service_behind_the_endpoints_route(there: There) -> None:
    written = there.serving.write(stable(there.serving.read("detector"), "1"))
    assert written.generation == 1
    assert there.serving.read("detector") == written
    assert there.names(SERVICE) == ["detector-v1"]
    assert len(there.names(RUNTIME)) == 1
    rule = there.route("detector")["spec"]["rules"][0]
    assert [(backend["name"], backend["weight"]) for backend in rule["backendRefs"]] == [("detector-v1-predictor", 100)]
    assert there.serving.url("detector") == f"http://{GATEWAY}/serving/{there.namespace}/detector"


def test_kserve_takes_the_service_up(there: There, cluster: client.ApiClient) -> None:
    there.serving.write(stable(there.serving.read("detector"), "1"))
    apps = client.AppsV1Api(cluster)
    wait_for(lambda: bool(apps.list_namespaced_deployment(there.namespace).items), 20)
    container = apps.list_namespaced_deployment(there.namespace).items[0].spec.template.spec.containers[0]
    given = {variable.name: variable.value for variable in container.env}
    assert container.image == SERVE_IMAGE
    assert given["FLYWHEEL_PACKAGE"] == "s3://bucket/artifacts/p.json"
    assert container.readiness_probe.http_get.path == "/v2/models/detector/ready"
    assert container.termination_message_policy == "FallbackToLogsOnError"
    assert there.names(("autoscaling", "v2", "horizontalpodautoscalers")) == []
    seen = there.serving.observe("detector")
    assert not seen["v1"].ready
    assert seen["v1"].reason


def test_the_next_version_takes_over_and_the_last_one_goes(there: There) -> None:
    first = there.serving.write(stable(there.serving.read("detector"), "1"))
    there.serving.write(stable(first, "2", "q"))
    wait_for(lambda: there.names(SERVICE) == ["detector-v2"], 20)
    assert there.route("detector")["spec"]["rules"][0]["backendRefs"][0]["name"] == "detector-v2-predictor"


def test_another_package_under_the_same_version_is_refused(there: There) -> None:
    first = there.serving.write(stable(there.serving.read("detector"), "1", "p"))
    with pytest.raises(Conflict, match=r"serves s3://bucket/artifacts/p\.json, not s3://bucket/artifacts/q\.json"):
        there.serving.write(stable(first, "1", "q"))


def test_a_route_that_is_not_ours_is_left_alone(there: There) -> None:
    foreign = {
        "apiVersion": ROUTE.api_version,
        "kind": "HTTPRoute",
        "metadata": {"name": "detector"},
        "spec": {"parentRefs": [{"name": "somewhere"}]},
    }
    there.objects.create_namespaced_custom_object(*ROUTE[:2], there.namespace, ROUTE[2], foreign)
    with pytest.raises(Corrupt, match="not ours"):
        there.serving.read("detector")


def test_a_refusal_of_the_webhook_is_the_users_to_mend(there: There) -> None:
    made = service(there.namespace, "detector", "v1", Served(release=release("1"), weight=100), "s3://b", "x", Pods())
    made["spec"]["predictor"]["minReplicas"] = 5
    with pytest.raises(UserError, match=r"(?i)replicas"), explained("it"):
        there.objects.create_namespaced_custom_object(*SERVICE[:2], there.namespace, SERVICE[2], made)
