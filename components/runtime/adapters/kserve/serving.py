"""Endpoints on KServe: wanted states written by compare-and-swap, and what truly runs."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from kubernetes import client

from ...config import Platform
from ...errors import Conflict, Corrupt, PlatformError
from ...ports import ANSWERED_BY, EndpointState, Observed
from .. import kubernetes
from ..kubernetes import MANAGER, Kind, Objects, explained, patiently
from . import build, mirror
from .build import ENDPOINT, FORMER, ROUTE, RUNTIME, SERVICE, STATE, STOP, VERSION, path_of, service_name

TROUBLES = {"CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "InvalidImageName"}
KILLED = 137
STARTING = "does not have minimum availability."
"""What KServe says while pods start, whatever the reason."""
GONE_S = 60.0
"""Seconds that a version which was taken away may need to be gone, when it is wanted again."""
ASKS = 100
"""Answers that show who has a share of the traffic: one with 10 % is missed once in 40,000 times."""


class KServe:
    """The endpoints of one namespace.

    Args:
        platform: Its store, images, pods and gateway.
    """

    home, home_kind = ROUTE, "HTTPRoute"
    """What holds an endpoint's wanted state."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        assert platform.gateway is not None, "the platform's own check"
        self.gateway = platform.gateway
        self.namespace = platform.serving_namespace
        self.patience_s = GONE_S
        """Seconds that a write waits, at most, until the gateway sends nobody to a version that goes."""
        self._client = kubernetes.connect()
        self.objects = Objects(self._client, self.namespace)

    def read(self, endpoint: str) -> EndpointState:
        with explained(f"endpoint {endpoint} cannot be read"):
            found = self.objects.get(ROUTE, endpoint)
        return state_of(found) if found else EndpointState(endpoint=endpoint)

    def write(self, state: EndpointState) -> EndpointState:
        with explained(f"endpoint {state.endpoint} could not be written"):
            generation = state.generation
            while True:
                found = self.objects.get(ROUTE, state.endpoint)
                if found is None:
                    generation = self._begin(state)
                    continue
                before = state_of(found)
                refuse_changed(before, generation, state.edited)
                written = state.but(generation=after(generation), edited="")
                former = former_of(found)
                if before.stable and before.stable != written.stable:
                    former = before.stable
                same = before.versions == written.versions  # a lease was renewed, or a state was explained
                if not same:
                    self._make(written, found)
                way = self._way(found, before, written)
                if swap(self.objects, ROUTE, build.divided(found, self.namespace, written, former, way)):
                    break  # otherwise read again who was quicker: the gateway's status changes the object too
            if not same:
                self._tidy(written, found, former, self.patience_s)
        return written

    def observe(self, endpoint: str) -> dict[str, Observed]:
        with explained(f"endpoint {endpoint} cannot be observed"):
            return {item["metadata"]["labels"][VERSION]: self._observed(item) for item in self._services(endpoint)}

    def url(self, endpoint: str) -> str:
        return self._address(endpoint)

    def stated(self, home: Mapping[str, Any]) -> EndpointState:
        """The wanted state in a route."""
        return state_of(home)

    def untidy(self, states: Sequence[EndpointState], homes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """What runs against what is wanted, by endpoint.

        Args:
            homes: The routes, by endpoint.
        """
        running: dict[str, list[dict[str, Any]]] = {}
        with explained("what runs cannot be listed"):
            for item in self.objects.list(SERVICE, ENDPOINT):
                running.setdefault(item["metadata"]["labels"][ENDPOINT], []).append(item)
        return {one.endpoint: untidy(one, homes[one.endpoint], running.get(one.endpoint, [])) for one in states}

    def keep(self, found: Mapping[str, Any]) -> None:
        """Make what runs at an endpoint what its route asks for: for a write that was killed before it could."""
        state = state_of(found)
        with explained(f"endpoint {state.endpoint} could not be kept"):
            self._make(state, found)
            self._tidy(state, found, former_of(found), 0.0)

    def _tidy(self, state: EndpointState, owner: Mapping[str, Any], former: str, wait_s: float) -> None:
        """Leave no version that nobody asked for; the champion before is kept without pods.

        Args:
            owner: The route.
            wait_s: Seconds that the gateway may need to send nobody there any more. What it still asks stays.
        """
        pods, items, now = self.platform.pods, self._services(state.endpoint), 0
        leaving = {item["metadata"]["labels"][VERSION] for item in items} - state.versions.keys()
        if leaving and not self._unasked(state.endpoint, leaving, wait_s):
            return  # the reconciler tries again
        for item in items:
            version, name = item["metadata"]["labels"][VERSION], item["metadata"]["name"]
            if version == state.stable and pods.scales:
                now = self._replicas(name)
            if version in state.versions or deleted(item):
                continue
            if version != former:
                self.objects.delete(SERVICE, name)
            elif not _stopped(item):
                self._stop(name, "true")
                if state.stable:
                    self.objects.delete(build.COPIER, build.copier_name(state.endpoint, version, state.stable))
        for item in items:
            if served := state.versions.get(item["metadata"]["labels"][VERSION]):
                made = build.companions(
                    item, pods, 100 if served.shadow else served.weight, now, len(state.versions) > 1
                )
                for kind, wanted in made.items():
                    self._keep(kind, wanted)
                if not _owns(owner, item):  # it came from Git, which knows no uid
                    change = {"metadata": {"ownerReferences": [build.owner_of(owner)]}}
                    self.objects.patch(SERVICE, item["metadata"]["name"], change)

    def _unasked(self, endpoint: str, versions: set[str], wait_s: float) -> bool:
        """Whether the gateway has versions answer no more, by its answers: it may learn of new weights after it learns
        that a version is gone, and then its users get errors."""
        until = time.monotonic() + wait_s
        address = f"{self._address(endpoint)}/v2/models/{endpoint}/ready"
        with httpx.Client(trust_env=False, timeout=5) as gateway:
            while True:
                try:
                    if not any(gateway.get(address).headers.get(ANSWERED_BY) in versions for _ in range(ASKS)):
                        return True
                except httpx.HTTPError:
                    pass  # it is away: nobody knows what it will do when it comes back
                if time.monotonic() > until:
                    return False
                time.sleep(0.1)

    def _address(self, endpoint: str, version: str = "") -> str:
        return f"{self.gateway.address.rstrip('/')}{path_of(self.namespace, endpoint, version)}"

    def _begin(self, state: EndpointState) -> int:
        """Make the route of a new endpoint, and give the generation it has.

        Raises:
            Conflict: It is no new one: its route was deleted.
        """
        first = first_of(state, self.home_kind)
        empty = build.route(self.namespace, state.endpoint, self.gateway)
        made = self.objects.create(ROUTE, build.divided(empty, self.namespace, first, ""))
        return first.generation if made else state.generation

    def _make(self, state: EndpointState, owner: Mapping[str, Any]) -> None:
        """Create the versions that are missing, before any traffic goes there, and wake those without pods."""
        for version, served in state.versions.items():
            served_by, wanted = build.server(self.platform, state.endpoint, version, served)
            wanted["metadata"]["ownerReferences"] = [build.owner_of(owner)]
            name = wanted["metadata"]["name"]
            found = present(self.objects, self.namespace, name)
            if found is None:
                # Named by its content, or of a write that was killed: what is there already is the same.
                self.objects.create(RUNTIME, served_by)
                self.objects.create(SERVICE, wanted)
            elif package_of(found) != package_of(wanted):
                raise Conflict(
                    f"InferenceService {name} in {self.namespace} serves {package_of(found)}, "
                    f"not {package_of(wanted)}.",
                    f"kubectl -n {self.namespace} delete inferenceservice {name}, if it is nobody's",
                )
            elif _stopped(found):
                self._stop(name, None)

    def _way(self, found: Mapping[str, Any], before: EndpointState, written: EndpointState) -> str:
        """How requests are copied, if a version is to be sent some.

        Raises:
            UserError: The gateway copies none.
        """
        if not written.shadow or not written.stable or before.shadow == written.shadow:
            return mirror.way_of(found)
        name = service_name(written.endpoint, written.shadow)
        owner = present(self.objects, self.namespace, name)
        assert owner is not None, "it was made"
        return mirror.tried(self.objects, self.gateway, self.namespace, written.endpoint, written.stable, owner)

    def _stop(self, name: str, stop: str | None) -> None:
        """Take the pods of a version away, or give them back. What it serves does not change."""
        self.objects.patch(SERVICE, name, {"metadata": {"annotations": {STOP: stop}}})

    def _keep(self, kind: Kind, wanted: dict[str, Any]) -> None:
        """Make an object as it is wanted."""
        name = wanted["metadata"]["name"]
        if self.objects.create(kind, wanted):
            return
        found = self.objects.get(kind, name)
        if found and not _within(wanted["spec"], found["spec"]):
            self.objects.patch(kind, name, {"spec": wanted["spec"]})

    def _replicas(self, name: str) -> int:
        try:
            scale = patiently(
                lambda: client.AppsV1Api(self._client).read_namespaced_deployment_scale(
                    f"{name}-predictor", self.namespace
                )
            )
        except client.ApiException as error:
            if error.status == 404:
                return 0
            raise
        return scale.spec.replicas or 0

    def _services(self, endpoint: str) -> list[dict[str, Any]]:
        return self.objects.list(SERVICE, f"{ENDPOINT}={endpoint}")

    def _observed(self, item: dict[str, Any]) -> Observed:
        """Ready is what the pods of exactly this specification say; KServe's own condition may be of an older one."""
        name, labels = item["metadata"]["name"], item["metadata"]["labels"]
        if _stopped(item):
            return Observed(ready=False, reason="it is kept without pods, for a fast way back")
        pods = patiently(
            lambda: client.CoreV1Api(self._client).list_namespaced_pod(
                self.namespace, label_selector=f"app=isvc.{name}-predictor"
            )
        ).items
        conditions = {found["type"]: found for found in item.get("status", {}).get("conditions", ())}
        ready = conditions.get("Ready", {}).get("status") == "True"
        answering = [pod for pod in pods if _is_ready(pod)]
        if ready and answering:
            return Observed(ready=True, url=self._address(labels[ENDPOINT], labels[VERSION]))
        return Observed(ready=False, reason=trouble(pods) or said(conditions))


def present(objects: Objects, namespace: str, name: str) -> dict[str, Any] | None:
    """An InferenceService that is not about to go; one that is, is waited for.

    Raises:
        PlatformError: It does not go.
    """
    until = time.monotonic() + GONE_S
    while (found := objects.get(SERVICE, name)) and deleted(found):
        if time.monotonic() > until:
            raise PlatformError(
                f"InferenceService {name} was deleted {GONE_S:.0f} s ago and is still there.",
                f"kubectl -n {namespace} get inferenceservice {name} -o yaml; is KServe's controller at work?",
            )
        time.sleep(0.1)
    return found


def swap(objects: Objects, kind: Kind, wanted: dict[str, Any]) -> bool:
    """Replace an object, unless it was changed since it was read."""
    try:
        objects.replace(kind, wanted)
    except client.ApiException as error:
        if error.status in (404, 409):
            return False
        raise
    return True


def after(generation: int) -> int:
    """The next generation: later than all before, also those of an endpoint that was deleted, or restored from Git."""
    return max(generation + 1, int(time.time() * 1000))


def first_of(state: EndpointState, home: str) -> EndpointState:
    """The first state of an endpoint that is not there, before anything is wanted of it.

    Args:
        state: What is to be written.
        home: Kind of the object that holds the state.

    Raises:
        Conflict: It was there when the state was read.
    """
    if state.generation:
        raise Conflict(
            f"endpoint {state.endpoint} is gone: its {home} was deleted.",
            "flywheel rollback brings its last champion back",
        )
    return EndpointState(endpoint=state.endpoint, generation=after(0))


def refuse_changed(before: EndpointState, generation: int, edited: str) -> None:
    """See that nobody changed an endpoint since it was read.

    Args:
        before: What it is now.
        generation, edited: As they were read.

    Raises:
        Conflict: Somebody did.
    """
    if (before.generation, before.edited) != (generation, edited):
        raise Conflict(
            f"endpoint {before.endpoint} was changed: it is at generation {before.generation}, not "
            f"{generation}{f', and {before.edited}' if before.edited else ''}.",
            "flywheel status shows who serves now",
        )


def state_of(found: Mapping[str, Any]) -> EndpointState:
    """The wanted state in a route; weights that somebody changed by hand are those that are told.

    Raises:
        Corrupt: It is no route of ours.
    """
    metadata = found["metadata"]
    where = f"annotation {STATE} of HTTPRoute {metadata['name']} in {metadata['namespace']}"
    text = (metadata.get("annotations") or {}).get(STATE)
    if text is None:
        raise Corrupt(f"{where} is missing: the route is not ours.", "give the endpoint another name")
    state = EndpointState.from_json(text, where)
    if found["spec"].get("rules") == build.rules(metadata["namespace"], state, mirror.way_of(found)):
        return state
    edited = _editor(metadata.get("managedFields") or ())
    if not edited:  # a newer Gateway API has defaults that we do not know
        return state
    seen = build.weights(found)
    versions = {
        version: served.but(weight=seen.get(service_name(state.endpoint, version), 0))
        for version, served in state.versions.items()
    }
    return state.but(versions=versions, edited=edited)


def untidy(state: EndpointState, found: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> str:
    """What runs at an endpoint against its route, or nothing.

    Args:
        found: The route.
        items: The endpoint's InferenceServices.
    """
    there = {item["metadata"]["labels"][VERSION]: item for item in items if not deleted(item)}
    wrong = [f"{version} is missing" for version in state.versions if version not in there]
    for version, item in there.items():
        if version in state.versions and _stopped(item):
            wrong.append(f"{version} has no pods")
        elif version in state.versions and not _owns(found, item):
            wrong.append(f"{version} does not belong to its route")
        elif version not in state.versions and (version != former_of(found) or not _stopped(item)):
            wrong.append(f"{version} is left over")
    return ", ".join(wrong)


def _owns(route: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    owners = item["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == route["metadata"]["uid"] for owner in owners)


def former_of(found: Mapping[str, Any]) -> str:
    """Name of the champion before, in a route; may be empty."""
    return str((found["metadata"].get("annotations") or {}).get(FORMER, ""))


def _editor(managers: Sequence[Mapping[str, Any]]) -> str:
    """Who set a route's rules, or the state, if it was not us: the API server keeps account of it."""
    places = ("f:spec", "f:rules"), ("f:metadata", "f:annotations", f"f:{STATE}")
    for place in places:
        setters = [entry for entry in managers if sets(entry, place)]
        if not any(entry["manager"] == MANAGER for entry in setters):
            who = f"by {setters[-1]['manager']} at {setters[-1]['time']}" if setters else "by somebody"
            return f"its HTTPRoute was edited {who}"
    return ""


def sets(entry: Mapping[str, Any], place: Sequence[str]) -> bool:
    """Whether an entry in the API server's account of an object is of who set the field at a place."""
    fields = entry.get("fieldsV1") or {}
    for name in place:
        if name not in fields:
            return False
        fields = fields[name]
    return True


def _within(wanted: Any, found: Any) -> bool:
    """Whether all that is wanted is so; what else there is are defaults."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_within(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(wanted) == len(found) and all(map(_within, wanted, found))
    return bool(wanted == found)


def deleted(item: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" in item["metadata"]


def _stopped(item: Mapping[str, Any]) -> bool:
    return (item["metadata"].get("annotations") or {}).get(STOP) == "true"


def package_of(item: Mapping[str, Any]) -> str:
    """What an InferenceService serves: the URI of its package."""
    given = {variable["name"]: variable.get("value") for variable in item["spec"]["predictor"]["model"]["env"]}
    return str(given.get("FLYWHEEL_PACKAGE"))


def _is_ready(pod: Any) -> bool:
    return any(found.type == "Ready" and found.status == "True" for found in pod.status.conditions or ())


def trouble(pods: list[Any]) -> str:
    """What keeps a version's pods from answering, in their own words."""
    for pod in pods:
        for container in pod.status.container_statuses or ():
            waiting, last = container.state.waiting, container.state.terminated or container.last_state.terminated
            if last and (last.reason == "OOMKilled" or last.exit_code == KILLED):
                return "it was killed, as happens to what uses more than pods.server_memory"
            if last and last.message:
                return str(last.message).strip().splitlines()[-1]
            if waiting and waiting.reason in TROUBLES:
                return f"{waiting.reason}: {waiting.message or container.image}"
        for condition in pod.status.conditions or ():
            if condition.type == "PodScheduled" and condition.status == "False":
                return f"no node: {condition.message}"
    return ""


def said(conditions: dict[str, Any]) -> str:
    """What conditions tell of a failure, or that there is none yet."""
    for condition in conditions.values():
        text = str(condition.get("message") or "").strip()
        if condition.get("status") == "False" and text and not text.endswith(STARTING):
            return text
    return "starting"
