"""From an endpoint's wanted state to objects, and nothing else: no cluster is asked.

The HTTPRoute divides the traffic, and holds the wanted state in an annotation. It owns the InferenceServices, and they
own what scales and protects their pods: who deletes the route has deleted the endpoint, and nothing is left of it.
"""

import math
from collections.abc import Mapping
from typing import Any

from ...artifacts import content_id
from ...config import Gateway, Platform, Pods
from ...images import SERVE
from ...ports import PIN, EndpointState, Served
from ..kubernetes import Kind
from ..pods import MANAGED, NON_ROOT, container, pull_secrets, refuse_unpinned, variables, volumes

SERVICE = Kind("serving.kserve.io", "v1beta1", "inferenceservices")
RUNTIME = Kind("serving.kserve.io", "v1alpha1", "servingruntimes")
ROUTE = Kind("gateway.networking.k8s.io", "v1", "httproutes")
COPIER = Kind("traefik.io", "v1alpha1", "traefikservices")
AUTOSCALER = Kind("autoscaling", "v2", "horizontalpodautoscalers")
BUDGET = Kind("policy", "v1", "poddisruptionbudgets")
MIRROR, TRAEFIK = "RequestMirror", "TraefikService"
"""Ways to have a gateway copy requests: Gateway API's own, which Traefik accepts and then fails every request, and
Traefik's."""
STATE, FORMER = "flywheel/state", "flywheel/former"
STOP = "serving.kserve.io/stop"
ENDPOINT, VERSION = "flywheel/endpoint", "flywheel/version"
FORMAT = "kfp-flywheel"
PORT = 8080
DRAIN_S = 5
"""Seconds that a pod goes on answering after it was told to end: as long as gateways may need to learn of it."""


def service_name(endpoint: str, version: str) -> str:
    """The InferenceService of one version."""
    return f"{endpoint}-{version}"


def path_of(namespace: str, endpoint: str, version: str = "") -> str:
    """Where the gateway serves an endpoint, in the form of KServe's own path template, or one version of it."""
    path = f"/serving/{namespace}/{endpoint}"
    return f"{path}/versions/{version}" if version else path


def runtime(namespace: str, image: str, pods: Pods) -> dict[str, Any]:
    """The ServingRuntime of one serving image, named by its hash.

    Raises:
        UserError: The image is named by no digest.
    """
    refuse_unpinned("serve", image, pods)
    resources = {"requests": {"cpu": pods.server_cpu, "memory": "256Mi"}, "limits": {"memory": pods.server_memory}}
    server = container("kserve-container", image, pods, pods.env, resources)
    server["command"] = ["python", "-m", "kfp_flywheel.components.serving.model_server"]
    server["ports"] = [{"name": "http", "containerPort": PORT, "protocol": "TCP"}]
    server["lifecycle"] = {"preStop": {"sleep": {"seconds": DRAIN_S}}}
    server["securityContext"] = server["securityContext"] | NON_ROOT  # the pod's own context is KServe's to set
    spec = {
        "supportedModelFormats": [{"name": FORMAT, "version": "1", "autoSelect": False}],
        "protocolVersions": ["v2"],
        "containers": [server],
        "imagePullSecrets": pull_secrets(pods),
        "volumes": volumes(pods),
    }
    return {
        "apiVersion": RUNTIME.api_version,
        "kind": "ServingRuntime",
        "metadata": {"name": f"flywheel-{content_id(spec)}", "namespace": namespace, "labels": MANAGED},
        "spec": spec,
    }


def service(
    namespace: str,
    endpoint: str,
    version: str,
    served: Served,
    store: str,
    runtime_name: str,
    pods: Pods,
    log_share: float = 1.0,
) -> dict[str, Any]:
    """The InferenceService of one version. It is never changed: another package is another version."""
    given = {
        "FLYWHEEL_PACKAGE": served.release.package_uri,
        "FLYWHEEL_STORE": store,
        "FLYWHEEL_NAME": endpoint,
        "FLYWHEEL_VERSION": version,
        "FLYWHEEL_LOG_SHARE": str(log_share),
        "FLYWHEEL_HOST": "0.0.0.0",  # noqa: S104 - in the pod
    }
    name = service_name(endpoint, version)
    # A busy server may be late: one that is taken out for that leaves its load to the others.
    probe = {"httpGet": {"path": f"/v2/models/{endpoint}/ready", "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 5}
    spec = {
        "predictor": {
            "minReplicas": pods.min_replicas,
            "maxReplicas": pods.most_replicas,
            "serviceAccountName": pods.service_account,
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": _pods_of(name)},
                }
            ],
            "model": {
                "modelFormat": {"name": FORMAT},
                "runtime": runtime_name,
                "protocolVersion": "v2",
                # The server fetches its package itself. Without this, KServe adds the agent of multi-model servers.
                "storage": {},
                "env": variables(given),
                # The default looks at the port only, which is open before the golden outputs are reproduced.
                "readinessProbe": probe | {"failureThreshold": 3},
            },
        }
    }
    return {
        "apiVersion": SERVICE.api_version,
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            # cluster-local: KServe makes no route of its own, which would bypass ours.
            "labels": MANAGED
            | {ENDPOINT: endpoint, VERSION: version, "networking.kserve.io/visibility": "cluster-local"},
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                # external: the number of pods is ours to change, and KServe does not put it back.
                "serving.kserve.io/autoscalerClass": "external" if pods.scales else "none",
            },
        },
        "spec": spec,
    }


def server(platform: Platform, endpoint: str, version: str, served: Served) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ServingRuntime and the InferenceService of one version, as a platform has them.

    Raises:
        UserError: The image is named by no digest.
    """
    namespace, pods = platform.serving_namespace, platform.pods
    made = runtime(namespace, platform.images.get("serve", SERVE), pods)
    name = made["metadata"]["name"]
    return made, service(namespace, endpoint, version, served, platform.store, name, pods, platform.log_share)


def _pods_of(name: str) -> dict[str, str]:
    """Labels of the pods of an InferenceService."""
    return {"app": f"isvc.{name}-predictor"}


def companions(
    service: Mapping[str, Any], pods: Pods, share: int, now: int, canary: bool
) -> dict[Kind, dict[str, Any]]:
    """What scales and protects the pods of an InferenceService that exists; it owns them.

    While there is a canary no version is scaled down: one that lost a part of its traffic gets it back at once when
    the other one is taken away.

    Args:
        share: Its share of the traffic in percent.
        now: Pods that the endpoint's stable version has.
        canary: Whether there are two versions.
    """
    name = service["metadata"]["name"]
    made: dict[Kind, dict[str, Any]] = {}
    if pods.scales:
        least = max(pods.min_replicas, min(math.ceil(now * share / 100), pods.most_replicas) if canary else 0)
        made[AUTOSCALER] = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{name}-predictor"},
            "minReplicas": least,
            "maxReplicas": pods.most_replicas,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": pods.target_cpu},
                    },
                }
            ],
            "behavior": {"scaleDown": {"selectPolicy": "Disabled" if canary else "Max"}},
        }
    if pods.min_replicas > 1:  # of a single pod it would forbid every drain
        made[BUDGET] = {"maxUnavailable": 1, "selector": {"matchLabels": _pods_of(name)}}
    kinds = {AUTOSCALER: "HorizontalPodAutoscaler", BUDGET: "PodDisruptionBudget"}
    return {
        kind: {
            "apiVersion": kind.api_version,
            "kind": kinds[kind],
            "metadata": {"name": name, "labels": MANAGED, "ownerReferences": [owner_of(service)]},
            "spec": spec,
        }
        for kind, spec in made.items()
    }


def owner_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """An object that exists, as the owner of others."""
    named = {name: item["metadata"][name] for name in ("name", "uid")}
    return {"apiVersion": item["apiVersion"], "kind": item["kind"], **named}


def route(namespace: str, endpoint: str, gateway: Gateway) -> dict[str, Any]:
    """The HTTPRoute of an endpoint without a version. Defaults are written out: Git has what the cluster has."""
    home, _, name = gateway.name.rpartition("/")
    parent = {"group": ROUTE.group, "kind": "Gateway", "name": name} | ({"namespace": home} if home else {})
    return {
        "apiVersion": ROUTE.api_version,
        "kind": "HTTPRoute",
        "metadata": {"name": endpoint, "namespace": namespace, "labels": MANAGED | {ENDPOINT: endpoint}},
        "spec": {"parentRefs": [parent], **({"hostnames": list(gateway.hosts)} if gateway.hosts else {})},
    }


def divided(
    found: Mapping[str, Any], namespace: str, state: EndpointState, former: str, way: str = MIRROR
) -> dict[str, Any]:
    """A route with the wanted state in it. Beyond its rules nothing is ours: host names, gateways, other annotations.

    Args:
        former: Name of the champion before, which is kept without pods; may be empty.
        way: How the gateway copies requests, if a version is to be sent some.
    """
    annotations = dict(found["metadata"].get("annotations") or {}) | {STATE: state.line(), FORMER: former}
    metadata = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
    return {
        **found,
        "metadata": metadata | {"annotations": annotations},
        "spec": {**found["spec"], "rules": rules(namespace, state, way)},
    }


def rules(namespace: str, state: EndpointState, way: str) -> list[dict[str, Any]]:
    """How an endpoint's requests are divided. Defaults are written out, so that what is found can be compared."""
    endpoint, path = state.endpoint, _path(path_of(namespace, state.endpoint))
    found = []
    for version in sorted(state.versions):
        # A version asked for by name, by a path or by a header. Its server is told so, and does not count the request.
        named = {"name": PIN, "value": version}
        mark = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [named]}}
        by_header = path | {"headers": [{"type": "Exact", **named}]}
        for match in (_path(path_of(namespace, endpoint, version)), by_header):  # a rewritten rule has one match only
            alone = {"filters": [mark, REWRITE], "backendRefs": [_backend(endpoint, version, 1)]}
            found.append({"matches": [match], **alone})
    backends = [_backend(endpoint, version, served.weight) for version, served in sorted(state.versions.items())]
    everybody = {"matches": [path], "filters": [REWRITE], **({"backendRefs": backends} if backends else {})}
    if state.stable and state.shadow:
        everybody |= copying(endpoint, state.stable, state.shadow, way)
    return [*found, everybody]


def copying(endpoint: str, stable: str, shadow: str, way: str) -> dict[str, Any]:
    """The part of a rule that has one version answer and another one sent a copy."""
    if way == MIRROR:
        to = {"backendRef": {key: value for key, value in _backend(endpoint, shadow, 0).items() if key != "weight"}}
        filters = [REWRITE, {"type": MIRROR, "requestMirror": to}]
        return {"filters": filters, "backendRefs": [_backend(endpoint, stable, 100), _backend(endpoint, shadow, 0)]}
    name = copier_name(endpoint, stable, shadow)
    backend = {"group": COPIER.group, "kind": TRAEFIK, "name": name, "weight": 100}
    return {"filters": [REWRITE], "backendRefs": [backend]}


def trial(
    namespace: str, endpoint: str, stable: str, owner: Mapping[str, Any], gateway: Gateway, way: str
) -> dict[str, Any]:
    """An HTTPRoute beside an endpoint's, which nobody knows of: it shows what a gateway makes of this way to copy.

    Args:
        owner: InferenceService of the version that is sent the copies.
    """
    made, shadow = route(namespace, endpoint, gateway), owner["metadata"]["labels"][VERSION]
    rule = {"matches": [_path(trial_path(namespace, endpoint, way))], **copying(endpoint, stable, shadow, way)}
    name = f"{copier_name(endpoint, stable, shadow)}-by-{way.lower()}"
    # Without the label of an endpoint: it is none.
    metadata = {"name": name, "namespace": namespace, "labels": MANAGED, "ownerReferences": [owner_of(owner)]}
    return made | {"metadata": metadata, "spec": made["spec"] | {"rules": [rule]}}


def trial_path(namespace: str, endpoint: str, way: str) -> str:
    """Where the gateway serves a trial."""
    return f"{path_of(namespace, endpoint)}/trials/{way.lower()}"


def copier_name(endpoint: str, stable: str, shadow: str) -> str:
    """The TraefikService that has one version answer and another one sent a copy; it is never changed."""
    return f"{endpoint}-{stable}-copied-to-{shadow}"


def copier(endpoint: str, stable: str, shadow: str, owner: Mapping[str, Any]) -> dict[str, Any]:
    """It."""
    answers, copied = (
        {"kind": "Service", "name": f"{service_name(endpoint, version)}-predictor", "port": 80}
        for version in (stable, shadow)
    )
    name = copier_name(endpoint, stable, shadow)
    return {
        "apiVersion": COPIER.api_version,
        "kind": TRAEFIK,
        "metadata": {"name": name, "labels": MANAGED, "ownerReferences": [owner_of(owner)]},
        "spec": {"mirroring": {**answers, "mirrors": [copied | {"percent": 100}]}},
    }


REWRITE = {
    "type": "URLRewrite",
    "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
}


def _path(path: str) -> dict[str, Any]:
    return {"path": {"type": "PathPrefix", "value": path}}


def _backend(endpoint: str, version: str, weight: int) -> dict[str, Any]:
    name = f"{service_name(endpoint, version)}-predictor"
    return {"group": "", "kind": "Service", "name": name, "port": 80, "weight": weight}


def weights(found: Mapping[str, Any]) -> dict[str, int]:
    """What a route truly asks for: the weight of each InferenceService, in percent or not."""
    backends = (found["spec"].get("rules") or [{}])[-1].get("backendRefs") or []
    return {backend["name"].removesuffix("-predictor"): int(backend.get("weight", 1)) for backend in backends}
