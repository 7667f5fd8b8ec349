"""Endpoints on KServe: wanted states written by compare-and-swap, and what truly runs."""

from typing import Any

from kubernetes import client

from ...config import Platform
from ...errors import Conflict, Corrupt
from ...images import SERVE
from ...ports import EndpointState, Observed
from .. import kubernetes
from ..kubernetes import Objects, explained, patiently
from .build import (
    ENDPOINT,
    ROUTE,
    RUNTIME,
    SERVICE,
    STATE,
    VERSION,
    path_of,
    route,
    runtime,
    service,
    service_name,
)

TROUBLES = {"CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "InvalidImageName"}


class KServe:
    """The endpoints of one namespace.

    Args:
        platform: Its store, images, pods and gateway.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        assert platform.gateway is not None, "the platform's own check"
        self.gateway = platform.gateway
        self.namespace = platform.serving.removeprefix("kserve://")
        self._client = kubernetes.connect()
        self._objects = Objects(self._client, self.namespace)

    def read(self, endpoint: str) -> EndpointState:
        with explained(f"endpoint {endpoint} cannot be read"):
            return self._state(endpoint, self._objects.get(ROUTE, endpoint))

    def write(self, state: EndpointState) -> EndpointState:
        with explained(f"endpoint {state.endpoint} could not be written"):
            written = state.but(generation=state.generation + 1)
            while True:
                found = self._objects.get(ROUTE, state.endpoint)
                before = self._state(state.endpoint, found)
                if before.generation != state.generation:
                    raise Conflict(
                        f"endpoint {state.endpoint} is at generation {before.generation}, not {state.generation}: it "
                        "was changed.",
                        "flywheel status shows who serves now",
                    )
                self._make_versions(written)
                if self._swap(route(self.namespace, written, self.gateway), found):
                    break  # otherwise read again who was quicker: the gateway's status changes the object too
            for version in before.versions.keys() - written.versions.keys():  # no traffic goes there any more
                self._objects.delete(SERVICE, service_name(state.endpoint, version))
        return written

    def observe(self, endpoint: str) -> dict[str, Observed]:
        with explained(f"endpoint {endpoint} cannot be observed"):
            found = patiently(
                lambda: self._objects.api.list_namespaced_custom_object(
                    *self._objects.at(SERVICE), label_selector=f"{ENDPOINT}={endpoint}"
                )
            )["items"]
            return {item["metadata"]["labels"][VERSION]: self._observed(item) for item in found}

    def url(self, endpoint: str) -> str:
        return f"{self.gateway.address.rstrip('/')}{path_of(self.namespace, endpoint)}"

    def _state(self, endpoint: str, found: dict[str, Any] | None) -> EndpointState:
        if found is None:
            return EndpointState(endpoint=endpoint)
        where = f"annotation {STATE} of HTTPRoute {endpoint} in {self.namespace}"
        text = found["metadata"].get("annotations", {}).get(STATE)
        if text is None:
            raise Corrupt(f"{where} is missing: the route is not ours.", "give the endpoint another name")
        return EndpointState.from_json(text, where)

    def _make_versions(self, state: EndpointState) -> None:
        """Create what is missing, before any traffic goes there."""
        pods, image = self.platform.pods, self.platform.images.get("serve", SERVE)
        served_by = runtime(self.namespace, image, pods)
        for version, served in state.versions.items():
            wanted = service(
                *(self.namespace, state.endpoint, version, served),
                *(self.platform.store, served_by["metadata"]["name"], pods, self.platform.log_share),
            )
            found = self._objects.get(SERVICE, wanted["metadata"]["name"])
            if found is None:
                # Named by its content, or of a write that was killed: what is there already is the same.
                self._objects.create(RUNTIME, served_by)
                self._objects.create(SERVICE, wanted)
            elif _package(found) != _package(wanted):
                name = wanted["metadata"]["name"]
                raise Conflict(
                    f"InferenceService {name} in {self.namespace} serves {_package(found)}, not {_package(wanted)}.",
                    f"kubectl -n {self.namespace} delete inferenceservice {name}, if it is nobody's",
                )

    def _swap(self, wanted: dict[str, Any], found: dict[str, Any] | None) -> bool:
        """Replace the route, unless it was changed since it was read."""
        if found is None:
            return self._objects.create(ROUTE, wanted)
        wanted["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        try:
            self._objects.api.replace_namespaced_custom_object(
                *self._objects.at(ROUTE), wanted["metadata"]["name"], wanted
            )
        except client.ApiException as error:
            if error.status == 409:
                return False
            raise
        return True

    def _observed(self, item: dict[str, Any]) -> Observed:
        """Ready is what the pods of exactly this specification say; KServe's own condition may be of an older one."""
        name = item["metadata"]["name"]
        pods = patiently(
            lambda: client.CoreV1Api(self._client).list_namespaced_pod(
                self.namespace, label_selector=f"app=isvc.{name}-predictor"
            )
        ).items
        conditions = {found["type"]: found for found in item.get("status", {}).get("conditions", ())}
        ready = conditions.get("Ready", {}).get("status") == "True"
        answering = [pod for pod in pods if _is_ready(pod)]
        if ready and answering:
            return Observed(ready=True, url=f"http://{name}-predictor.{self.namespace}.svc.cluster.local")
        return Observed(ready=False, reason=_trouble(pods) or _said(conditions))


def _package(item: dict[str, Any]) -> str:
    given = {variable["name"]: variable.get("value") for variable in item["spec"]["predictor"]["model"]["env"]}
    return str(given.get("FLYWHEEL_PACKAGE"))


def _is_ready(pod: Any) -> bool:
    return any(found.type == "Ready" and found.status == "True" for found in pod.status.conditions or ())


def _trouble(pods: list[Any]) -> str:
    """What keeps a version's pods from answering, in their own words."""
    for pod in pods:
        for container in pod.status.container_statuses or ():
            waiting, last = container.state.waiting, container.last_state.terminated
            if last and last.message:
                return str(last.message).strip().splitlines()[-1]
            if last and last.reason == "OOMKilled":
                return "it was killed for using more than pods.server_memory"
            if waiting and waiting.reason in TROUBLES:
                return f"{waiting.reason}: {waiting.message or container.image}"
        for condition in pod.status.conditions or ():
            if condition.type == "PodScheduled" and condition.status == "False":
                return f"no node: {condition.message}"
    return ""


def _said(conditions: dict[str, Any]) -> str:
    for condition in conditions.values():
        if condition.get("status") == "False" and condition.get("message"):
            return str(condition["message"]).strip()
    return "starting"
