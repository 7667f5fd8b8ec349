"""The reconciler's Deployment, with a platform in it: pure, as all that is made for a cluster."""

from typing import Any

from ...config import Platform
from ...images import STEPS
from ..pods import MANAGED, NON_ROOT, container, pull_secrets, refuse_unpinned, volumes

NAME = "flywheel-reconciler"
METRICS_PORT = 9100


def deployment(platform: Platform) -> dict[str, Any]:
    """Two pods, of which one acts. Its rights are in manifests/base/reconciler.yaml.

    Raises:
        UserError: The image is named by no digest.
    """
    image, pods = platform.images.get("steps", STEPS), platform.pods
    refuse_unpinned("steps", image, pods)
    labels = MANAGED | {"app.kubernetes.io/name": NAME}
    # The limit is for the moment in which MLflow is told of a new champion.
    resources = {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": "768Mi"}}
    env = {"FLYWHEEL_PLATFORM": platform.line(), "FLYWHEEL_HOST": "0.0.0.0"} | pods.env  # noqa: S104 - in the pod
    keeper = container("reconciler", image, pods, env, resources)
    keeper["command"] = ["python", "-m", "kfp_flywheel.components.serving.keeper"]
    keeper["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    keeper["readinessProbe"] = {"httpGet": {"path": "/metrics", "port": "metrics"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": NAME,
                    "securityContext": NON_ROOT,
                    "imagePullSecrets": pull_secrets(pods),
                    "containers": [keeper],
                    "volumes": volumes(pods),
                },
            },
        },
    }
