"""What the pods of jobs and of model servers have in common."""

from collections.abc import Mapping
from typing import Any

from ..config import Pods
from ..errors import UserError

MANAGED = {"app.kubernetes.io/managed-by": "kfp-flywheel"}
"""What runs made."""
PART, COMPONENT = {"app.kubernetes.io/part-of": "kfp-flywheel"}, "app.kubernetes.io/component"
"""What an installation consists of."""
UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
USER = 1000
NON_ROOT = {"runAsNonRoot": True, "runAsUser": USER, "seccompProfile": {"type": "RuntimeDefault"}}
SCRATCH = "/tmp"  # noqa: S108 - of the container


def refuse_unpinned(profile: str, image: str, pods: Pods) -> None:
    """What runs under an image's name must not change.

    Raises:
        UserError: The image is named by no digest, and could be pulled.
    """
    if "@sha256:" not in image and pods.image_pull_policy != "Never":
        raise UserError(
            f"images.{profile} is {image!r}, which names no digest: what runs could change under its name.",
            "make images, and put the name with @sha256: into the platform file",
        )


def container(
    name: str, image: str, pods: Pods, env: Mapping[str, str], resources: Mapping[str, Any]
) -> dict[str, Any]:
    """A container that may write to its scratch folder only. Its pod needs `volumes`."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": pods.image_pull_policy,
        "env": [
            *variables({"HOME": SCRATCH, **env}),
            *(
                {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
                for secret, keys in pods.secrets.items()
                for key in keys
            ),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",  # its last lines stand in the pod's status
        "resources": dict(resources),
        "securityContext": UNPRIVILEGED,
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH},
            *({"name": f"host-{n}", "mountPath": path, "readOnly": True} for n, path in enumerate(pods.host_paths)),
        ],
    }


def variables(env: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in env.items()]


def volumes(pods: Pods) -> list[dict[str, Any]]:
    return [
        {"name": "scratch", "emptyDir": {}},
        *({"name": f"host-{n}", "hostPath": {"path": path}} for n, path in enumerate(pods.host_paths)),
    ]


def pull_secrets(pods: Pods) -> list[dict[str, str]]:
    return [{"name": secret} for secret in pods.pull_secrets]
