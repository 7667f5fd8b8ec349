"""What a platform file says about the pods of steps, as Kubeflow Pipelines takes it: the messages of kfp-kubernetes."""

import difflib
from collections.abc import Iterable
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig

from ..components.runtime.config import Platform, StepPods
from ..components.runtime.errors import UserError

EVERY = "all"


def checked(platform: Platform, stages: Iterable[str]) -> None:
    """See to it that all settings are of stages that there are.

    Raises:
        UserError: Names the one that is none.
    """
    known = [EVERY, *stages]
    for name in platform.steps:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"stages are {', '.join(known)}"
            raise UserError(f"steps has {name}, which is no stage.", hint)


def of(stage: str, platform: Platform) -> StepPods:
    """The settings of a stage: its own, and for the rest those of all."""
    every, own = (platform.steps.get(name, StepPods()) for name in (EVERY, stage))
    unset = StepPods()
    given = {name: value for name in own.__struct_fields__ if (value := getattr(own, name)) != getattr(unset, name)}
    return every.but(**given)


def pod(stage: str, platform: Platform) -> dict[str, Any]:
    """The Kubernetes side of a stage's pod; empty if nothing is said of it.

    Raises:
        UserError: A toleration is none.
    """
    settings = of(stage, platform)
    found = {
        "secretAsEnv": [
            {**_secret(name), "keyToEnv": [{"secretKey": key, "envVar": key} for key in keys]}
            for name, keys in platform.pods.secrets.items()
        ],
        "imagePullSecret": [_secret(name) for name in platform.pods.pull_secrets],
        "imagePullPolicy": {"IfNotPresent": ""}.get(platform.pods.image_pull_policy, platform.pods.image_pull_policy),
        "pvcMount": [
            {"constant": claim, "pvcNameParameter": _constant(claim), "mountPath": path}
            for claim, path in settings.volumes.items()
        ],
        "nodeSelector": {"labels": settings.node_selector} if settings.node_selector else {},
        "podMetadata": {"labels": settings.labels} if settings.labels else {},
        "tolerations": list(settings.tolerations),
        "activeDeadlineSeconds": settings.timeout_s,
    }
    said = {name: value for name, value in found.items() if value}
    try:
        ParseDict(said, KubernetesExecutorConfig())
    except ParseError as error:
        raise UserError(f"steps.{stage}: {str(error).rstrip('.')}.", "correct steps in the platform file") from error
    return said


def resources(stage: str, platform: Platform) -> dict[str, str]:
    """What a stage's container asks for, and is held to."""
    settings = of(stage, platform)
    asked = {"Cpu": settings.cpu, "Memory": settings.memory}
    return {f"resource{what}{how}": value for what, value in asked.items() if value for how in ("Request", "Limit")}


def _secret(name: str) -> dict[str, Any]:
    return {"secretName": name, "secretNameParameter": _constant(name)}


def _constant(value: str) -> dict[str, Any]:
    return {"runtimeValue": {"constant": value}}
