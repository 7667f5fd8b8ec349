"""Endpoints on KServe in Knative's mode: one InferenceService each, whose traffic Knative divides over its revisions.

The wanted state is an annotation of a Lease of the endpoint's name, which owns the InferenceService: who deletes it has
deleted the endpoint. In the InferenceService itself it would make a new revision with each change, as KServe hands
annotations on to the template.

A write records the wanted state and goes one step towards it, as `revisions.step` has it; a share is asked for only
when the right revision is ready. What is then still to be done is done by the next write, as the renewal of a lease
is one, or by `keep`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kubernetes import client

from ...config import Platform
from ...errors import Conflict, Corrupt
from ...images import SERVE
from ...ports import EndpointState, Observed
from .. import kubernetes
from ..kubernetes import Objects, explained, patiently
from ..leader import LEASE
from ..pods import MANAGED
from . import build, revisions
from .build import ENDPOINT, RUNTIME, SERVICE, STATE, VERSION
from .revisions import KNATIVE_SERVICE, PERCENT, REVISION, Asked
from .serving import after, first_of, package_of, present, refuse_changed, said, sets, swap, trouble


class KnativeServing:
    """The endpoints of one namespace.

    Args:
        platform: Its store, images and pods.
    """

    home, home_kind = LEASE, "Lease"
    """What holds an endpoint's wanted state."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.namespace = platform.serving_namespace
        self._client = kubernetes.connect()
        self.objects = Objects(self._client, self.namespace)

    def read(self, endpoint: str) -> EndpointState:
        with explained(f"endpoint {endpoint} cannot be read"):
            home = self.objects.get(LEASE, endpoint)
            if home is None:
                return EndpointState(endpoint=endpoint)
            return state_of(home, self.objects.get(SERVICE, endpoint))

    def write(self, state: EndpointState) -> EndpointState:
        """As the port has it. A share is recorded at once, and asked for when the right revision is ready.

        Raises:
            Conflict: Somebody changed it first, or a version serves another package.
            UserError: There are two canaries, or one with all of the traffic; or what is to run is refused.
        """
        revisions.refuse_indivisible(state)
        with explained(f"endpoint {state.endpoint} could not be written"):
            generation = state.generation
            while True:
                home = self.objects.get(LEASE, state.endpoint)
                if home is None:
                    generation = self._begin(state)
                    continue
                service = self.objects.get(SERVICE, state.endpoint)
                before = state_of(home, service)
                refuse_changed(before, generation, state.edited)
                written = state.but(generation=after(generation), edited="")
                if before.versions != written.versions:
                    self._rehearse(written, service)
                if swap(self.objects, LEASE, _home(written, home)):
                    break
            self._approach(state.endpoint, accepted=state.edited)
        return written

    def observe(self, endpoint: str) -> dict[str, Observed]:
        with explained(f"endpoint {endpoint} cannot be observed"):
            home, service = self.objects.get(LEASE, endpoint), self.objects.get(SERVICE, endpoint)
            if home is None or service is None:
                return {}
            items = self._revisions(endpoint)
            labels = {item["metadata"]["name"]: item["metadata"]["labels"] for item in items}
            traffic = revisions.predictor_of(service).get("traffic", ())
            running = {labels.get(entry.get("revisionName"), {}).get(VERSION, "") for entry in traffic} - {""}
            versions = sorted(running | state_of(home, None).versions.keys())
            return {version: self._observed(version, service, items) for version in versions}

    def url(self, endpoint: str) -> str:
        """As Knative gives it, before anything is ready; empty as long as KServe and Knative did nothing."""
        with explained(f"endpoint {endpoint} cannot be observed"):
            found = self.objects.get(KNATIVE_SERVICE, f"{endpoint}-predictor") or {}
        return str(found.get("status", {}).get("url", "")).rstrip("/")

    def stated(self, home: Mapping[str, Any]) -> EndpointState:
        """The wanted state in a Lease; of edits by hand nothing is told."""
        return state_of(home, None)

    def untidy(self, states: Sequence[EndpointState], homes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """What is still to be asked for, by endpoint; nothing where somebody edited it by hand.

        Args:
            homes: The Leases, by endpoint.
        """
        items: dict[str, list[dict[str, Any]]] = {}
        with explained("what runs cannot be listed"):
            services = {item["metadata"]["name"]: item for item in self.objects.list(SERVICE, ENDPOINT)}
            for item in self.objects.list(REVISION, ENDPOINT):
                items.setdefault(item["metadata"]["labels"][ENDPOINT], []).append(item)
        wrong = {}
        for state in states:
            service = services.get(state.endpoint)
            wrong[state.endpoint] = ""
            if service is None:
                wrong[state.endpoint] = f"{state.stable} is missing" if state.stable else ""
            elif not state.stable:
                wrong[state.endpoint] = "its InferenceService is left over"
            elif not state_of(homes[state.endpoint], service).edited:
                asked = revisions.asked_of(service)
                seen = revisions.rolled(service, items.get(state.endpoint, []))
                if (found := revisions.step(state, asked, seen)) != asked:
                    wrong[state.endpoint] = f"{found.version} is to have {found.percent} %"
        return wrong

    def keep(self, home: Mapping[str, Any]) -> None:
        """Go the next step to what is wanted: for a write whose revision was not ready, or that was killed."""
        endpoint = home["metadata"]["name"]
        with explained(f"endpoint {endpoint} could not be kept"):
            self._approach(endpoint)

    def _begin(self, state: EndpointState) -> int:
        """Make the Lease of a new endpoint, and give the generation it has.

        Raises:
            Conflict: It is no new one: its Lease was deleted.
        """
        first = first_of(state, self.home_kind)
        made = self.objects.create(LEASE, _home(first, None))
        return first.generation if made else state.generation

    def _rehearse(self, state: EndpointState, service: Mapping[str, Any] | None) -> None:
        """See that what is wanted may run, before it is recorded.

        Raises:
            Conflict: One of the versions serves another package.
            UserError: It is refused.
        """
        for version in state.versions:
            wanted = self._wanted(state, Asked(version, revisions.ALL, "0"))
            if service and revisions.asked_of(service).version == version and package_of(service) != package_of(wanted):
                raise Conflict(
                    f"InferenceService {state.endpoint} in {self.namespace} serves {package_of(service)} as {version}, "
                    f"not {package_of(wanted)}.",
                    "register the package as a version of its own",
                )
            self.objects.create(SERVICE, wanted, rehearsal=True)

    def _approach(self, endpoint: str, accepted: str = "") -> None:
        """Go one step to what is wanted. The InferenceService is read first: who changes the state meanwhile has to
        replace it too, so the last one to do so knows the last state.

        Args:
            accepted: An edit by hand that may be overwritten: whoever wrote the state has seen it.
        """
        while True:
            service = present(self.objects, self.namespace, endpoint)
            items = self._revisions(endpoint)
            home = self.objects.get(LEASE, endpoint)
            if home is None:
                return
            state = state_of(home, service)
            if state.edited not in ("", accepted):
                return
            if not state.stable:
                self.objects.delete(SERVICE, endpoint)
                return
            if service and service["metadata"]["ownerReferences"][0]["uid"] != home["metadata"]["uid"]:
                self.objects.delete(SERVICE, endpoint)  # of an endpoint of this name that was deleted
                continue
            asked = revisions.asked_of(service) if service else None
            next_one = revisions.step(state, asked, revisions.rolled(service or {}, items))
            if next_one == asked or self._ask(state, next_one, service, home):
                return

    def _ask(self, state: EndpointState, asked: Asked, service: dict[str, Any] | None, home: Mapping[str, Any]) -> bool:
        """Ask for a version and its share, unless somebody was quicker."""
        if service and revisions.asked_of(service).turn == asked.turn:
            predictor = service["spec"]["predictor"] | {PERCENT: asked.percent}
            return swap(self.objects, SERVICE, service | {"spec": {**service["spec"], "predictor": predictor}})
        wanted = self._wanted(state, asked)
        if service is None:
            wanted["metadata"]["ownerReferences"] = [build.owner_of(home)]
            return self.objects.create(SERVICE, wanted)
        return swap(self.objects, SERVICE, service | {"spec": wanted["spec"]})

    def _wanted(self, state: EndpointState, asked: Asked) -> dict[str, Any]:
        """The InferenceService that asks so, with the runtime that it names."""
        runtime = revisions.runtime(self.namespace, self.platform.images.get("serve", SERVE), self.platform.pods)
        self.objects.create(RUNTIME, runtime)  # named by its content: what is there already is the same
        return revisions.service(self.namespace, state, asked, self.platform, runtime["metadata"]["name"])

    def _revisions(self, endpoint: str) -> list[dict[str, Any]]:
        return self.objects.list(REVISION, f"{ENDPOINT}={endpoint}")

    def _observed(self, version: str, service: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> Observed:
        """Ready is what Knative says of the very revision, and where it has an address of its own."""
        revision, url = revisions.place_of(version, service, items)
        if revision is None:
            asked = revisions.asked_of(service).version
            conditions = _conditions(service)
            waits = f"it waits until {asked} is rolled out" if asked != version else said(conditions)
            return Observed(ready=False, reason=waits)
        conditions = _conditions(revision)
        if url and conditions.get("Ready", {}).get("status") == "True":
            return Observed(ready=True, url=url.rstrip("/"))
        selector = f"serving.knative.dev/revision={revision['metadata']['name']}"
        pods = patiently(
            lambda: client.CoreV1Api(self._client).list_namespaced_pod(self.namespace, label_selector=selector)
        ).items
        return Observed(ready=False, reason=trouble(pods) or said(conditions))


def _home(state: EndpointState, found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The Lease of an endpoint with the wanted state in it; whoever has a canary there is its holder."""
    metadata: dict[str, Any] = {"name": state.endpoint} | dict(found["metadata"] if found else {})
    metadata["labels"] = (metadata.get("labels") or {}) | MANAGED | {ENDPOINT: state.endpoint}
    metadata["annotations"] = (metadata.get("annotations") or {}) | {STATE: state.line()}
    metadata.pop("managedFields", None)
    spec = {"holderIdentity": state.lease.owner} if state.lease else {}
    return {"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": metadata, "spec": spec}


def state_of(home: Mapping[str, Any], service: Mapping[str, Any] | None) -> EndpointState:
    """The wanted state in a Lease; shares that somebody changed by hand are those that are told.

    Args:
        service: The endpoint's InferenceService; none if there is none, or to tell of no edits.

    Raises:
        Corrupt: It is no Lease of ours.
    """
    metadata = home["metadata"]
    where = f"annotation {STATE} of Lease {metadata['name']} in {metadata['namespace']}"
    text = (metadata.get("annotations") or {}).get(STATE)
    if text is None:
        raise Corrupt(f"{where} is missing: the Lease is not ours.", "give the endpoint another name")
    state = EndpointState.from_json(text, where)
    if service is None or "deletionTimestamp" in service["metadata"]:
        return state
    place = ("f:spec", "f:predictor", f"f:{PERCENT}")
    setters = [entry for entry in service["metadata"].get("managedFields") or () if sets(entry, place)]
    if who := revisions.edited(state, service, setters):
        return revisions.as_asked(state, service).but(edited=who)
    return state


def _conditions(item: Mapping[str, Any]) -> dict[str, Any]:
    return {found["type"]: found for found in item.get("status", {}).get("conditions", ())}
