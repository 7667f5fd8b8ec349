"""The reconciler's Deployment, with a platform in it: pure, as all that is made for a cluster."""

from typing import Any

from ...config import Platform
from ...images import STEPS
from ..pods import MANAGED, NON_ROOT, PART, container, pull_secrets, refuse_unpinned, volumes

NAME = "flywheel-reconciler"
METRICS_PORT = 9100


def deployment(platform: Platform) -> dict[str, Any]:
    """Two pods, of which one acts. Its rights are in manifests/base/reconciler.yaml.

    Raises:
        UserError: The image is named by no digest.
    """
    image, pods = platform.images.get("steps", STEPS), platform.pods
    refuse_unpinned("steps", image, pods)
    own = {"app.kubernetes.io/name": NAME}
    apart = {"labelSelector": {"matchLabels": own}, "topologyKey": "kubernetes.io/hostname"}
    # The limit is for the moment in which MLflow is told of a new champion.
    resources = {
        "requests": {"cpu": "20m", "memory": "128Mi", "ephemeral-storage": "64Mi"},
        "limits": {"memory": "768Mi", "ephemeral-storage": "1Gi"},
    }
    env = {"FLYWHEEL_PLATFORM": platform.line(), "FLYWHEEL_HOST": "0.0.0.0"} | pods.env  # noqa: S104 - in the pod
    keeper = container("reconciler", image, pods, env, resources)
    keeper["command"] = ["python", "-m", "kfp_flywheel.components.serving.keeper"]
    keeper["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    keeper["securityContext"] = keeper["securityContext"] | {"readOnlyRootFilesystem": True}
    keeper["readinessProbe"] = {"httpGet": {"path": "/metrics", "port": "metrics"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": NAME,
            "namespace": platform.serving_namespace,
            "labels": MANAGED | PART | own,
        },
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": own},
            "template": {
                "metadata": {"labels": MANAGED | own},
                "spec": {
                    "serviceAccountName": NAME,
                    "affinity": {
                        "podAntiAffinity": {
                            "preferredDuringSchedulingIgnoredDuringExecution": [
                                {"weight": 100, "podAffinityTerm": apart}
                            ]
                        }
                    },
                    "securityContext": NON_ROOT,
                    "imagePullSecrets": pull_secrets(pods),
                    "containers": [keeper],
                    "volumes": volumes(pods),
                },
            },
        },
    }
