"""Knative's own controller on this machine. The rest of it is played: the autoscaler with its pods, and the ingress."""

import json
import subprocess
import threading
from typing import Any

import urllib3
from kfp_flywheel.components.runtime.adapters.kserve.build import VERSION
from kfp_flywheel.components.runtime.adapters.kserve.revisions import REVISION
from kfp_flywheel.components.runtime.adapters.kubernetes import Kind, Objects
from kubernetes import client

from . import programs
from .control import KNATIVE, ControlPlane
from .processes import answers

SCALER = Kind("autoscaling.internal.knative.dev", "v1alpha1", "podautoscalers")
INGRESS = Kind("networking.internal.knative.dev", "v1alpha1", "ingresses")
HEALTH = "http://127.0.0.1:8080/readiness"
AWAY = (client.ApiException, urllib3.exceptions.HTTPError)


class Knative:
    """Configurations, revisions and routes, beside a control plane that is up."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def up(self) -> None:
        """Start it, unless it is at work; build it when it is missing."""
        places = self.plane.places
        programs.build_knative(places, print)
        us = {"KUBECONFIG": str(places.kubeconfig), "SYSTEM_NAMESPACE": KNATIVE, "POD_NAME": "knative"}
        self.plane.processes.start("knative", programs.path(places, "knative"), env=us)
        self.plane.ready("knative", lambda: answers(HEALTH))

    def down(self) -> None:
        """End it."""
        self.plane.processes.stop("knative")

    def refusal(self, service: dict[str, Any]) -> str:
        """What Knative's webhook would say against a Knative Service, or nothing."""
        program = programs.path(self.plane.places, "knative-valid")
        return subprocess.run([program], input=json.dumps(service), text=True, capture_output=True, check=True).stdout

    def hold(self) -> None:
        """Let it do nothing, as under load, until `go_on`."""
        process = self.plane.processes.find("knative")
        assert process is not None
        process.suspend()

    def go_on(self) -> None:
        process = self.plane.processes.find("knative")
        assert process is not None
        process.resume()


class Around:
    """Plays the autoscaler and the ingress of one namespace, and keeps account of each division that was asked for.

    Args:
        objects: Of the namespace.
        endpoint: Whose traffic is told.
    """

    def __init__(self, api: client.ApiClient, namespace: str, endpoint: str) -> None:
        self.objects, self.endpoint = Objects(api, namespace), endpoint
        self.apps, self.namespace = client.AppsV1Api(api), namespace
        self.unready: set[str] = set()
        """Versions whose pods do not get ready."""
        self.history: list[dict[str, int]] = []
        """What the ingress was asked for: percent of each version, without those that have none."""
        self._over, self._versions = threading.Event(), dict[str, str]()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> "Around":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def shares(self) -> dict[str, int]:
        """The division now."""
        return self.history[-1] if self.history else {}

    def _play(self) -> None:
        while not self._over.wait(0.03):
            try:
                self._scale()
                self._divide()
            except AWAY:
                continue

    def _scale(self) -> None:
        for item in self.objects.list(SCALER, ""):
            name, version = item["metadata"]["name"], item["metadata"]["labels"].get(VERSION, "")
            self._versions[name] = version
            if version in self.unready or _is_ready(item):
                continue
            kinds = ("Active", "Ready", "SKSReady", "ScaleTargetInitialized")
            told = {"serviceName": name, "metricsServiceName": name, "desiredScale": 1, "actualScale": 1}
            self._tell(SCALER, item, told, kinds)
            # No pods: they would find no image.
            self.apps.patch_namespaced_deployment_scale(f"{name}-deployment", self.namespace, {"spec": {"replicas": 0}})

    def _divide(self) -> None:
        for item in self.objects.list(INGRESS, ""):
            shares: dict[str, int] = {}
            for split in item["spec"]["rules"][0]["http"]["paths"][0]["splits"]:
                version = self._version(split["serviceName"])
                shares[version] = shares.get(version, 0) + split["percent"]
            shares = {version: share for version, share in shares.items() if share}
            if self.shares != shares:
                self.history.append(shares)
            if not _is_ready(item):
                way = {"ingress": [{"domainInternal": "gateway.example.com"}]}
                kinds = ("LoadBalancerReady", "NetworkConfigured", "Ready")
                self._tell(INGRESS, item, {"publicLoadBalancer": way, "privateLoadBalancer": way}, kinds)

    def _version(self, revision: str) -> str:
        if revision not in self._versions:
            found = self.objects.get(REVISION, revision)
            self._versions[revision] = found["metadata"]["labels"].get(VERSION, "") if found else ""
        return self._versions[revision]

    def _tell(self, kind: Kind, item: dict[str, Any], told: dict[str, Any], conditions: tuple[str, ...]) -> None:
        known = [{"type": name, "status": "True"} for name in conditions]
        status = told | {"observedGeneration": item["metadata"]["generation"], "conditions": known}
        self.objects.api.patch_namespaced_custom_object_status(
            *self.objects.at(kind), item["metadata"]["name"], {"status": status}
        )


def _is_ready(item: dict[str, Any]) -> bool:
    status = item.get("status", {})
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ()))
    return ready and status.get("observedGeneration") == item["metadata"]["generation"]
