"""From an endpoint's wanted state to objects, and nothing else: no cluster is asked.

The HTTPRoute is the only one that changes. It divides the traffic, and holds the wanted state in an annotation.
"""

from typing import Any

from ...artifacts import content_id
from ...config import Gateway, Pods
from ...ports import EndpointState, Served
from ..kubernetes import Kind
from ..pods import MANAGED, NON_ROOT, container, pull_secrets, refuse_unpinned, variables, volumes

SERVICE = Kind("serving.kserve.io", "v1beta1", "inferenceservices")
RUNTIME = Kind("serving.kserve.io", "v1alpha1", "servingruntimes")
ROUTE = Kind("gateway.networking.k8s.io", "v1", "httproutes")
STATE = "flywheel/state"
ENDPOINT, VERSION = "flywheel/endpoint", "flywheel/version"
FORMAT = "kfp-flywheel"
PORT = 8080


def service_name(endpoint: str, version: str) -> str:
    """The InferenceService of one version."""
    return f"{endpoint}-{version}"


def path_of(namespace: str, endpoint: str) -> str:
    """Where the gateway serves an endpoint, in the form of KServe's own path template. It never changes."""
    return f"/serving/{namespace}/{endpoint}"


def runtime(namespace: str, image: str, pods: Pods) -> dict[str, Any]:
    """The ServingRuntime of one serving image, named by its hash.

    Raises:
        UserError: The image is named by no digest.
    """
    refuse_unpinned("serve", image, pods)
    resources = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": pods.server_memory}}
    server = container("kserve-container", image, pods, pods.env, resources)
    server["command"] = ["python", "-m", "kfp_flywheel.components.serving.model_server"]
    server["ports"] = [{"containerPort": PORT, "protocol": "TCP"}]
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
    probe = {"httpGet": {"path": f"/v2/models/{endpoint}/ready", "port": PORT}, "periodSeconds": 1}
    spec = {
        "predictor": {
            "minReplicas": 1,
            "maxReplicas": 1,
            "serviceAccountName": pods.service_account,
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
            "name": service_name(endpoint, version),
            "namespace": namespace,
            # cluster-local: KServe makes no route of its own, which would bypass ours.
            "labels": MANAGED
            | {ENDPOINT: endpoint, VERSION: version, "networking.kserve.io/visibility": "cluster-local"},
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "none",
            },
        },
        "spec": spec,
    }


def route(namespace: str, state: EndpointState, gateway: Gateway) -> dict[str, Any]:
    """The endpoint's HTTPRoute: its path, the versions' weights, and the wanted state itself."""
    home, _, name = gateway.name.rpartition("/")
    parent = {"name": name} | ({"namespace": home} if home else {})
    backends = [
        {"name": f"{service_name(state.endpoint, version)}-predictor", "port": 80, "weight": served.weight}
        for version, served in sorted(state.versions.items())
    ]
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": path_of(namespace, state.endpoint)}}],
        "filters": [
            {
                "type": "URLRewrite",
                "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
            }
        ],
        "backendRefs": backends,
    }
    return {
        "apiVersion": ROUTE.api_version,
        "kind": "HTTPRoute",
        "metadata": {
            "name": state.endpoint,
            "namespace": namespace,
            "labels": MANAGED | {ENDPOINT: state.endpoint},
            "annotations": {STATE: state.line()},
        },
        "spec": {
            "parentRefs": [parent],
            **({"hostnames": list(gateway.hosts)} if gateway.hosts else {}),
            "rules": [rule],
        },
    }
