"""Endpoints on a real API server with KServe's controller and webhooks; no node is needed."""

from typing import Any

import pytest
from kfp_flywheel.components.runtime.adapters.kserve.build import (
    AUTOSCALER,
    BUDGET,
    ROUTE,
    RUNTIME,
    SERVICE,
    service,
    weights,
)
from kfp_flywheel.components.runtime.adapters.kserve.manifests import manifests_of
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe, untidy
from kfp_flywheel.components.runtime.adapters.kubernetes import explained
from kfp_flywheel.components.runtime.config import Pods
from kfp_flywheel.components.runtime.errors import Conflict, Corrupt, UserError
from kfp_flywheel.components.runtime.ports import EndpointState, Served
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

    def shares(self, name: str) -> dict[str, int]:
        """What the gateway is asked for."""
        return weights(self.route(name))

    def route(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.objects.get_namespaced_custom_object(*ROUTE[:2], self.namespace, ROUTE[2], name)
        return found


@pytest.fixture
def there(cluster: client.ApiClient, namespace: str) -> There:
    return There(cluster, namespace)


def test_a_version_is_an_immutable_service_behind_the_endpoints_route(there: There) -> None:
    written = there.serving.write(stable(there.serving.read("detector"), "1"))
    assert there.serving.read("detector") == written
    assert there.names(SERVICE) == ["detector-v1"]
    assert len(there.names(RUNTIME)) == 1
    assert there.shares("detector") == {"detector-v1": 100}
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


def test_pods_that_are_never_let_in_are_told_of(there: There, cluster: client.ApiClient) -> None:
    limits = {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]}
    client.CoreV1Api(cluster).create_namespaced_limit_range(
        there.namespace, {"metadata": {"name": "small"}, "spec": limits}
    )
    there.serving.write(stable(there.serving.read("detector"), "1"))
    wait_for(lambda: "maximum memory usage" in there.serving.observe("detector")["v1"].reason, 30)


def test_the_next_version_takes_over_and_the_one_before_is_kept_without_pods(
    there: There, cluster: client.ApiClient
) -> None:
    first = there.serving.write(stable(there.serving.read("detector"), "1"))
    apps = client.AppsV1Api(cluster)

    def deployed() -> list[str]:
        return sorted(item.metadata.name for item in apps.list_namespaced_deployment(there.namespace).items)

    wait_for(lambda: deployed() == ["detector-v1-predictor"], 20)
    second = there.serving.write(stable(first, "2", "q"))
    assert there.shares("detector") == {"detector-v2": 100}
    wait_for(lambda: deployed() == ["detector-v2-predictor"], 20)
    assert there.names(SERVICE) == ["detector-v1", "detector-v2"]
    assert there.serving.observe("detector")["v1"].reason == "it is kept without pods, for a fast way back"
    third = there.serving.write(stable(second, "3", "r"))
    wait_for(lambda: there.names(SERVICE) == ["detector-v2", "detector-v3"], 20)
    there.serving.write(stable(third, "2", "q"))  # back, without anything to be made
    wait_for(lambda: deployed() == ["detector-v2-predictor"], 20)
    assert there.names(SERVICE) == ["detector-v2", "detector-v3"]


def beside(state: EndpointState, weight: int) -> EndpointState:
    """The state with version 2 as a canary."""
    versions = {
        "v1": state.versions["v1"].but(weight=100 - weight),
        "v2": Served(release=release("2", "q"), weight=weight),
    }
    return state.but(versions=versions)


def test_a_canary_that_is_taken_away_goes_for_good_and_may_come_again_at_once(there: There) -> None:
    first = there.serving.write(stable(there.serving.read("detector"), "1"))
    state = first
    for _ in range(3):
        both = there.serving.write(beside(state, 10))
        assert there.shares("detector") == {"detector-v1": 90, "detector-v2": 10}
        assert there.names(SERVICE) == ["detector-v1", "detector-v2"]
        state = there.serving.write(both.but(versions=first.versions))
    wait_for(lambda: there.names(SERVICE) == ["detector-v1"], 20)


def test_who_deletes_the_route_deletes_the_endpoint_and_it_can_begin_again(there: There) -> None:
    first = there.serving.write(stable(there.serving.read("detector"), "1"))
    both = there.serving.write(beside(first, 10))
    there.objects.delete_namespaced_custom_object(*ROUTE[:2], there.namespace, ROUTE[2], "detector")
    wait_for(lambda: there.names(SERVICE) == [], 30)
    assert there.serving.read("detector").generation == 0
    with pytest.raises(Conflict, match="HTTPRoute was deleted"):
        there.serving.write(both)
    again = there.serving.write(stable(there.serving.read("detector"), "1"))
    assert again.generation >= both.generation
    assert there.names(SERVICE) == ["detector-v1"]


def edit(there: There, canary: int) -> None:
    """What a person does with kubectl edit: the weights of the last rule."""
    rules = there.route("detector")["spec"]["rules"]
    for backend in rules[-1]["backendRefs"]:
        backend["weight"] = canary if "v2" in backend["name"] else 100 - canary
    there.objects.patch_namespaced_custom_object(
        *ROUTE[:2], there.namespace, ROUTE[2], "detector", {"spec": {"rules": rules}}, field_manager="kubectl-edit"
    )


def test_an_edit_by_hand_is_seen_and_not_overwritten_unless_by_somebody_who_saw_it(there: There) -> None:
    both = there.serving.write(beside(there.serving.write(stable(there.serving.read("detector"), "1")), 10))
    edit(there, 40)
    seen = there.serving.read("detector")
    assert seen.edited.startswith("its HTTPRoute was edited by kubectl-edit at 20")
    assert {name: served.weight for name, served in seen.versions.items()} == {"v1": 60, "v2": 40}
    with pytest.raises(Conflict, match="edited by kubectl-edit"):
        there.serving.write(both.but(reason="a lease is renewed"))
    assert there.shares("detector") == {"detector-v1": 60, "detector-v2": 40}
    decided = there.serving.write(seen.but(versions={"v1": seen.versions["v1"].but(weight=100)}))
    assert (decided.edited, there.serving.read("detector")) == ("", decided)
    assert there.shares("detector") == {"detector-v1": 100}


def test_an_edit_that_was_undone_is_none(there: There) -> None:
    both = there.serving.write(beside(there.serving.write(stable(there.serving.read("detector"), "1")), 10))
    edit(there, 40)
    edit(there, 10)
    assert there.serving.read("detector") == both


def test_what_is_not_ours_in_the_route_stays(there: There) -> None:
    first = there.serving.write(stable(there.serving.read("detector"), "1"))
    change = {"metadata": {"annotations": {"team": "vision"}}, "spec": {"hostnames": ["models.example.com"]}}
    there.objects.patch_namespaced_custom_object(*ROUTE[:2], there.namespace, ROUTE[2], "detector", change)
    there.serving.write(beside(there.serving.read("detector"), 10))
    found = there.route("detector")
    assert first.edited == there.serving.read("detector").edited == ""
    assert (found["metadata"]["annotations"]["team"], found["spec"]["hostnames"]) == ("vision", ["models.example.com"])


def test_a_write_that_was_killed_is_put_right(there: There) -> None:
    """Between the route and what runs: the canary is gone from the route and still there."""
    first = there.serving.write(stable(there.serving.read("detector"), "1"))
    both = there.serving.write(beside(first, 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(there.serving, "_tidy", lambda *given: None)
        there.serving.write(both.but(versions=first.versions))
    state, found = there.serving.read("detector"), there.route("detector")
    items = there.serving.objects.list(SERVICE, "flywheel/endpoint=detector")
    assert untidy(state, found, items) == "v2 is left over"
    there.serving.keep(found)
    wait_for(lambda: there.names(SERVICE) == ["detector-v1"], 20)
    there.serving.objects.delete(SERVICE, "detector-v1")
    wait_for(lambda: there.names(SERVICE) == [], 20)
    assert untidy(state, found, []) == "v1 is missing"
    there.serving.keep(found)
    assert there.names(SERVICE) == ["detector-v1"]


def test_an_endpoint_that_git_brought_back_is_made_whole(there: There) -> None:
    """Git knows no owner, and nothing of what scales and protects pods."""
    platform = there.serving.platform
    platform = platform.but(pods=Pods.of(**platform.pods.plain() | {"min_replicas": 2, "max_replicas": 4}))
    there.serving = KServe(platform)
    state = there.serving.write(stable(there.serving.read("detector"), "1"))
    files = manifests_of(platform, state)
    there.serving.objects.delete(ROUTE, "detector")
    wait_for(lambda: all(there.names(kind) == [] for kind in (ROUTE, SERVICE, AUTOSCALER, BUDGET)), 30)
    for kind, name in ((SERVICE, "inferenceservice.yaml"), (ROUTE, "httproute.yaml")):
        assert there.serving.objects.create(kind, files[name])

    def wrong() -> str:
        items = there.serving.objects.list(SERVICE, "flywheel/endpoint=detector")
        return untidy(there.serving.read("detector"), there.route("detector"), items)

    assert wrong() == "v1 does not belong to its route"
    there.serving.keep(there.route("detector"))
    assert (wrong(), there.names(AUTOSCALER), there.names(BUDGET)) == ("", ["detector-v1"], ["detector-v1"])
    there.serving.objects.delete(ROUTE, "detector")
    wait_for(lambda: all(there.names(kind) == [] for kind in (ROUTE, SERVICE, AUTOSCALER, BUDGET)), 30)


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
