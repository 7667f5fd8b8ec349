"""From a job's specification to the RayJob object, and nothing else: no cluster is asked."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from ...config import Pods
from ...images import RAY
from ...ports import JobSpec
from ..kubernetes import Kind
from ..pods import MANAGED, NON_ROOT, USER, container, pull_secrets, refuse_unpinned, volumes

RAYJOB = Kind("ray.io", "v1", "rayjobs")
NAME_LIMIT = 47
"""KubeRay's: it derives longer names from a RayJob's."""
SPEC_HASH = "flywheel/spec-hash"


def name_of(spec: JobSpec) -> str:
    """The RayJob's name: readable, deterministic, and short enough.

    `a-very-long-name` becomes `a-very-l-<hash>`; a name that fits is kept.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")
    if not re.match("[a-z]", slug):
        slug = f"job-{slug}"  # services are named after it, and their names begin with a letter
    if slug == spec.name and len(slug) <= NAME_LIMIT:
        return slug
    digest = hashlib.sha256(spec.name.encode()).hexdigest()[:10]
    return f"{slug[: NAME_LIMIT - 11].rstrip('-')}-{digest}"


def build(spec: JobSpec, namespace: str, pods: Pods, owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The RayJob of a job.

    Args:
        owner: An ownerReference: what it belongs to and is deleted with, as the Argo Workflow of a run.

    Raises:
        UserError: The image is not named, or by no digest.
    """
    refuse_unpinned("train", spec.image, pods)
    least = spec.workers if pods.min_workers is None else min(pods.min_workers, spec.workers)
    autoscaled = least < spec.workers
    return {
        "apiVersion": RAYJOB.api_version,
        "kind": "RayJob",
        "metadata": {
            "name": name_of(spec),
            "namespace": namespace,
            "labels": MANAGED | pods.labels,
            "annotations": {SPEC_HASH: spec.spec_hash},
            **({"ownerReferences": [dict(owner)]} if owner else {}),
        },
        "spec": {
            "entrypoint": f"python -m {spec.module} {spec.spec_uri}",
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": _pod(_submitter(spec, pods), pods, {"restartPolicy": "Never"}),
            "backoffLimit": 0,  # a new cluster for each attempt; what can be tried again is tried again by the adapter
            "activeDeadlineSeconds": int(spec.deadline_s),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 0,  # of the cluster: its GPUs are given back at once, the submitter's log stays
            "rayClusterSpec": {
                "rayVersion": RAY,
                # Without it, whoever reaches the pods may use Ray; KubeRay 1.4 itself could not with it.
                **({"authOptions": {"mode": "token"}} if pods.ray_token else {}),
                **({"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}} if autoscaled else {}),
                "headGroupSpec": {
                    # No CPUs: workers go to workers, and the head stays alive.
                    "rayStartParams": {
                        "num-cpus": "0",
                        "object-store-memory": "100000000",
                        "dashboard-host": "0.0.0.0",  # noqa: S104 - in the pod; the operator asks from outside
                    },
                    # Ray's autoscaler asks the API server, by rights that KubeRay gives it; nothing else of ours does.
                    "template": _pod(
                        _container("ray-head", spec, pods, "200m", pods.head_memory),
                        pods,
                        {"automountServiceAccountToken": True} if autoscaled else None,
                    ),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": least,
                        "minReplicas": least,
                        "maxReplicas": spec.workers,
                        "rayStartParams": {"num-cpus": str(spec.cpus)},
                        "template": _pod(_worker(spec, pods), pods, _placed(pods, spec.gpus)),
                    }
                ],
            },
        },
    }


def _container(name: str, spec: JobSpec, pods: Pods, cpu: str, memory: str) -> dict[str, Any]:
    said = {} if pods.ray_token else {"RAY_AUTH_MODE": "disabled"}  # else Ray would ask if it found a token somewhere
    environment = {"RAY_USAGE_STATS_ENABLED": "0", **said, **pods.env, **spec.env}
    resources = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}
    made = container(name, spec.image, pods, environment, resources)
    made["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108
    return made


def _worker(spec: JobSpec, pods: Pods) -> dict[str, Any]:
    made = _container("ray-worker", spec, pods, str(spec.cpus), pods.worker_memory)
    if spec.gpus:
        made["resources"]["limits"]["nvidia.com/gpu"] = spec.gpus
    return made


def _submitter(spec: JobSpec, pods: Pods) -> dict[str, Any]:
    return _container("ray-job-submitter", spec, pods, "100m", "512Mi")


def _placed(pods: Pods, gpus: int) -> dict[str, Any]:
    tolerations = list(pods.tolerations)
    if gpus and not any(toleration.get("key") == "nvidia.com/gpu" for toleration in tolerations):
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    return {"nodeSelector": pods.node_selector, "tolerations": tolerations}


def _pod(only: dict[str, Any], pods: Pods, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "metadata": {
            "labels": MANAGED | pods.labels,
            # A mesh's proxy does not end with its pod's job, and Ray speaks more than HTTP.
            "annotations": {"sidecar.istio.io/inject": "false"},
        },
        "spec": {
            "serviceAccountName": pods.service_account,
            "imagePullSecrets": pull_secrets(pods),
            "securityContext": NON_ROOT | {"runAsGroup": USER, "fsGroup": USER},
            "containers": [only],
            "volumes": [
                *volumes(pods),
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shared_memory}},
            ],
            **(more or {}),
        },
    }
