"""The pods of Kubeflow's steps, for those who may see them.

Kubeflow Pipelines itself tells neither what a step prints while it works, nor what one waits for that does not begin.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import urllib3
from kubernetes import client

from ...errors import PlatformError
from .. import kubernetes

USUAL = ("PodInitializing", "ContainerCreating")
STEP = "main"
"""Argo's name for the container that is ours."""
AWAY = (PlatformError, urllib3.exceptions.HTTPError)


class Pods:
    """Pods of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    @cached_property
    def _core(self) -> client.CoreV1Api:
        return client.CoreV1Api(kubernetes.connect())

    def printed(self, name: str) -> str | None:
        """What a pod has printed; None if it is not there, or not for us to see."""
        try:
            answer = self._core.read_namespaced_pod_log(name, self.namespace, container=STEP, _preload_content=False)
        except client.ApiException as error:
            return "" if error.status == 400 else None  # 400: it has not begun
        except AWAY:
            return None
        return str(answer.data.decode(errors="replace"))

    def wait_for(self, name: str) -> str:
        """What a pod waits for; empty if that is nothing unusual. Who may not see pods is told how to look."""
        try:
            found = self._core.read_namespaced_pod(name, self.namespace)
        except client.ApiException as error:
            return "" if error.status == 404 else self._look(name)
        except AWAY:
            return self._look(name)
        return hindrance(self._core.api_client.sanitize_for_serialization(found))

    def _look(self, name: str) -> str:
        return f"its pod: kubectl -n {self.namespace} describe pod {name}"


def hindrance(pod: Mapping[str, Any]) -> str:
    """What keeps a pod from beginning: a node, an image, a secret."""
    status = pod.get("status", {})
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason", USUAL[0]) not in USUAL:
            return f"{waiting['reason']}: {waiting.get('message', '')}".removesuffix(": ")
    for condition in status.get("conditions", ()):
        if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
            return f"a node: {condition.get('message', '')}".removesuffix(": ")
    return ""
