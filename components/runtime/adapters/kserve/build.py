"""From an endpoint's wanted state to objects, and nothing else: no cluster is asked.

The HTTPRoute is the only one that changes. It divides the traffic, and holds the wanted state in an annotation.
"""

import hashlib
import json
from typing import Any

from ...config import Gateway, Pods
from ...errors import UserError
from ...ports import EndpointState, Served

SERVICE = ("serving.kserve.io", "v1beta1", "inferenceservices")
RUNTIME = ("serving.kserve.io", "v1alpha1", "servingruntimes")
ROUTE = ("gateway.networking.k8s.io", "v1", "httproutes")
STATE, HASH = "flywheel/state", "flywheel/spec-hash"
ENDPOINT, VERSION = "flywheel/endpoint", "flywheel/version"
MANAGED = {"app.kubernetes.io/managed-by": "kfp-flywheel"}
FORMAT = "kfp-flywheel"
PORT = 8080
UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
SCRATCH = "/tmp"  # noqa: S108 - of the container


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
    if "@sha256:" not in image and pods.image_pull_policy != "Never":
        raise UserError(
            f"images.serve is {image!r}, which names no digest: what runs could change under its name.",
            "make images, and put the name with @sha256: into the platform file",
        )
    container = {
        "name": "kserve-container",
        "image": image,
        "imagePullPolicy": pods.image_pull_policy,
        "command": ["python", "-m", "kfp_flywheel.components.serving.model_server"],
        "env": [{"name": key, "value": value} for key, value in ({"HOME": SCRATCH} | pods.env).items()],
        "envFrom": [{"secretRef": {"name": secret}} for secret in pods.secrets],
        "terminationMessagePolicy": "FallbackToLogsOnError",  # its last line is the reason why it ended
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": pods.server_memory}},
        "securityContext": UNPRIVILEGED | {"runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH},
            *({"name": f"host-{n}", "mountPath": path, "readOnly": True} for n, path in enumerate(pods.host_paths)),
        ],
    }
    spec = {
        "supportedModelFormats": [{"name": FORMAT, "version": "1", "autoSelect": False}],
        "protocolVersions": ["v2"],
        "containers": [container],
        "imagePullSecrets": [{"name": secret} for secret in pods.pull_secrets],
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            *({"name": f"host-{n}", "hostPath": {"path": path}} for n, path in enumerate(pods.host_paths)),
        ],
    }
    return {
        "apiVersion": "/".join(RUNTIME[:2]),
        "kind": "ServingRuntime",
        "metadata": {"name": f"flywheel-{_hash(spec)}", "namespace": namespace, "labels": MANAGED},
        "spec": spec,
    }


def service(
    namespace: str, endpoint: str, version: str, served: Served, store: str, runtime_name: str, pods: Pods
) -> dict[str, Any]:
    """The InferenceService of one version. It is never changed: another package is another version."""
    given = {
        "FLYWHEEL_PACKAGE": served.release.package_uri,
        "FLYWHEEL_STORE": store,
        "FLYWHEEL_NAME": endpoint,
        "FLYWHEEL_VERSION": version,
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
                "env": [{"name": key, "value": value} for key, value in given.items()],
                # The default looks at the port only, which is open before the golden outputs are reproduced.
                "readinessProbe": probe | {"failureThreshold": 3},
            },
        }
    }
    return {
        "apiVersion": "/".join(SERVICE[:2]),
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
                HASH: _hash(spec),
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
        "apiVersion": "/".join(ROUTE[:2]),
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


def _hash(spec: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
