"""What a cluster is and lets us do, for whoever wants to know before anything is started. Nothing is changed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from kubernetes import client

from . import kubernetes
from .kubernetes import Kind, explained, patiently

RIGHTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "rayjob": (
        ("ray.io", "rayjobs", "get watch create delete"),
        ("", "pods", "get list"),
        ("", "pods/log", "get"),
        ("", "events", "list"),
    ),
    "standard": (
        ("serving.kserve.io", "inferenceservices", "get list create patch delete"),
        ("serving.kserve.io", "servingruntimes", "create"),
        ("gateway.networking.k8s.io", "httproutes", "get create update delete"),
        ("autoscaling", "horizontalpodautoscalers", "get create patch"),
        ("policy", "poddisruptionbudgets", "get create patch"),
        ("", "pods", "list"),
    ),
    "knative": (
        ("serving.kserve.io", "inferenceservices", "get list create update delete"),
        ("serving.kserve.io", "servingruntimes", "create"),
        ("serving.knative.dev", "services", "get"),
        ("serving.knative.dev", "revisions", "list"),
        ("coordination.k8s.io", "leases", "get create update"),
        ("", "pods", "list"),
    ),
}
"""What the steps of a run need, by what they work with: group, resource, verbs."""
GATEWAY = Kind("gateway.networking.k8s.io", "v1", "gateways")


class Cluster:
    """The cluster that this process is connected to."""

    def __init__(self) -> None:
        self._api = kubernetes.connect()
        self.url: str = self._api.configuration.host

    def version(self) -> str:
        with explained("the cluster does not tell its version"):
            return str(client.VersionApi(self._api).get_code().git_version)

    def resources(self, group: str, version: str) -> set[str]:
        """Plural names of the kinds of a group in a version; none if the cluster has not got it."""
        with explained(f"the cluster does not tell what it knows of {group}"):
            try:
                found = patiently(lambda: client.CustomObjectsApi(self._api).get_api_resources(group, version))
            except client.ApiException as error:
                if error.status == 404:
                    return set()
                raise
        return {resource.name for resource in found.resources}

    def denied(self, namespace: str, wanted: str, account: str = "") -> list[str] | None:
        """What may not be done in a namespace, of what the steps need: `create rayjobs.ray.io`.

        Args:
            wanted: A key of RIGHTS.
            account: Whose rights, NAMESPACE:NAME; ours without it.

        Returns:
            None if we may not see the rights of others.
        """
        asked = [(group, resource, verb) for group, resource, verbs in RIGHTS[wanted] for verb in verbs.split()]
        with explained("the cluster does not tell what may be done"), ThreadPoolExecutor(8) as pool:
            try:
                allowed = list(pool.map(lambda right: self._may(account, namespace, *right), asked))
            except client.ApiException as error:
                if error.status == 403 and account:
                    return None
                raise
        return [
            f"{verb} {f'{resource}.{group}'.rstrip('.')}"
            for (group, resource, verb), may in zip(asked, allowed, strict=True)
            if not may
        ]

    def _may(self, account: str, namespace: str, group: str, resource: str, verb: str) -> bool:
        name, _, part = resource.partition("/")
        attributes = client.V1ResourceAttributes(
            namespace=namespace, group=group, resource=name, subresource=part or None, verb=verb
        )
        reviews = client.AuthorizationV1Api(self._api)
        if account:
            home = account.partition(":")[0]
            groups = ["system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{home}"]
            asked = client.V1SubjectAccessReviewSpec(
                user=f"system:serviceaccount:{account}", groups=groups, resource_attributes=attributes
            )
            ask = partial(reviews.create_subject_access_review, client.V1SubjectAccessReview(spec=asked))
        else:
            ours = client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
            ask = partial(reviews.create_self_subject_access_review, client.V1SelfSubjectAccessReview(spec=ours))
        return bool(patiently(ask).status.allowed)

    def gpus(self) -> int | None:
        """GPUs of all nodes; none if we may not see nodes."""
        nodes = self._seen(client.CoreV1Api(self._api).list_node)
        if nodes is None:
            return None
        return sum(int((node.status.allocatable or {}).get("nvidia.com/gpu", 0)) for node in nodes.items)

    def gateway(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A Gateway, or None if there is none."""
        with explained(f"gateway {namespace}/{name} cannot be read"):
            return kubernetes.Objects(self._api, namespace).get(GATEWAY, name)

    def has_account(self, namespace: str, name: str) -> bool | None:
        """Whether a service account is there; None if we may not see."""
        found = self._seen(lambda: client.CoreV1Api(self._api).read_namespaced_service_account(name, namespace))
        return None if found is None else bool(found)

    def secret_keys(self, namespace: str, name: str) -> set[str] | None:
        """The keys of a secret, empty if there is no such secret; None if we may not see."""
        found = self._seen(lambda: client.CoreV1Api(self._api).read_namespaced_secret(name, namespace))
        return None if found is None else set(found.data or {}) if found else set()

    def _seen(self, call: Callable[[], Any]) -> Any:
        """An object, False if there is none, None if we may not see it."""
        with explained("the cluster does not tell what is there"):
            try:
                return patiently(call)
            except client.ApiException as error:
                if error.status in (403, 404):
                    return None if error.status == 403 else False
                raise
