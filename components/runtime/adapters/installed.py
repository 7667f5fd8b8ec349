"""What of ours is on a cluster: what the manifests made, and what runs made and left."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kubernetes import client

from ..config import Platform
from . import kubernetes
from .kserve.build import BUDGET, COPIER, ENDPOINT, ROUTE, RUNTIME
from .kserve.reconciler import NAME
from .kubernetes import Kind, explained, patiently
from .leader import LEASE
from .pods import COMPONENT, MANAGED, PART
from .rayjob.build import RAYJOB
from .rayjob.reasons import state_of

RBAC, CORE = "rbac.authorization.k8s.io", ""
MADE = {
    "Deployment": Kind("apps", "v1", "deployments"),
    "StatefulSet": Kind("apps", "v1", "statefulsets"),
    "PodDisruptionBudget": BUDGET,
    "Service": Kind(CORE, "v1", "services"),
    "Gateway": Kind("gateway.networking.k8s.io", "v1", "gateways"),
    "PodMonitor": Kind("monitoring.coreos.com", "v1", "podmonitors"),
    "PrometheusRule": Kind("monitoring.coreos.com", "v1", "prometheusrules"),
    "LocalQueue": Kind("kueue.x-k8s.io", "v1beta1", "localqueues"),
    "ResourceQuota": Kind(CORE, "v1", "resourcequotas"),
    "RoleBinding": Kind(RBAC, "v1", "rolebindings"),
    "Role": Kind(RBAC, "v1", "roles"),
    "ServiceAccount": Kind(CORE, "v1", "serviceaccounts"),
    "NetworkPolicy": Kind("networking.k8s.io", "v1", "networkpolicies"),
    "PersistentVolumeClaim": Kind(CORE, "v1", "persistentvolumeclaims"),
}
"""Kinds of the manifests, in the order in which they go: who acts first, who keeps others out last."""
LEFT = {"ServingRuntime": RUNTIME, "TraefikService": COPIER}
KINDS = MADE | LEFT | {"HTTPRoute": ROUTE, "Lease": LEASE, "RayJob": RAYJOB}


class Item(NamedTuple):
    """An object in a namespace."""

    namespace: str
    kind: str
    name: str


class Installed:
    """What there is in the namespaces of a platform.

    Args:
        platform: `serving` is `kserve://`, or `jobs` is `rayjob://`.
    """

    def __init__(self, platform: Platform) -> None:
        self._namespaces = platform.namespaces
        self._client = kubernetes.connect()

    def endpoints(self) -> list[Item]:
        """Endpoints: the object that holds each one's wanted state."""
        return [item for name in ("HTTPRoute", "Lease") for item, _ in self._labelled(name, ENDPOINT)]

    def jobs(self) -> tuple[list[Item], list[Item]]:
        """RayJobs that are at work, and those that ended."""
        at_work, ended = list[Item](), list[Item]()
        for item, found in self._labelled("RayJob", _selector(MANAGED)):
            over = state_of(found.get("status", {})) in ("succeeded", "failed")
            (ended if over else at_work).append(item)
        return at_work, ended

    def left(self) -> list[Item]:
        """What runs left beside endpoints and jobs, to be used again."""
        found = [item for name in LEFT for item, _ in self._labelled(name, _selector(MANAGED))]
        return found + [item for item, _ in self._labelled("Lease", "") if item.name == NAME]

    def made(self) -> tuple[list[Item], list[Item]]:
        """What the manifests made: what goes with them, and what holds data and stays."""
        goes, stays = list[Item](), list[Item]()
        for name in MADE:
            for item, found in self._labelled(name, _selector(PART)):
                holds = found["metadata"]["labels"].get(COMPONENT) == "mlflow"
                (stays if holds else goes).append(item)
        return goes, stays

    def delete(self, item: Item) -> None:
        """Delete an object and what it owns. One that is gone is no error."""
        path = f"{_path(KINDS[item.kind], item.namespace)}/{item.name}"
        with explained(f"{item.kind} {item.name} in {item.namespace} could not be deleted"):
            self._ask("DELETE", path, ("propagationPolicy", "Background"))

    def _labelled(self, name: str, selector: str) -> Iterator[tuple[Item, dict[str, Any]]]:
        """Objects of a kind; none if the cluster does not know it."""
        for namespace in self._namespaces:
            with explained(f"{KINDS[name].plural} in {namespace} cannot be listed"):
                found = self._ask("GET", _path(KINDS[name], namespace), ("labelSelector", selector))
            for one in found.get("items", ()):
                yield Item(namespace, name, one["metadata"]["name"]), one

    def _ask(self, method: str, path: str, option: tuple[str, str]) -> dict[str, Any]:
        """One answer of the API server; an empty one for what is not there."""
        how = {"response_type": "object", "auth_settings": ["BearerToken"], "_return_http_data_only": True}
        accept = {"Accept": "application/json"}
        try:
            found: dict[str, Any] = patiently(
                lambda: self._client.call_api(path, method, query_params=[option], header_params=accept, **how)
            )
        except client.ApiException as error:
            if error.status != 404:
                raise
            return {}
        return found


def _path(kind: Kind, namespace: str) -> str:
    root = f"apis/{kind.group}" if kind.group else "api"
    return f"/{root}/{kind.version}/namespaces/{namespace}/{kind.plural}"


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())
