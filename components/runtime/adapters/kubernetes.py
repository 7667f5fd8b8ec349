"""The API server, as adapters need it: errors for a person, objects followed without a gap, schemas before use."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import urllib3
from kubernetes import client, config, watch

from ..errors import Conflict, PlatformError, UserError

T = TypeVar("T")
AWAY_S = 300.0
"""Seconds that the API server may be away, as while it is upgraded."""
FIRST_S = 10.0
"""The same of the first question: a wrong address must not be asked for minutes."""
MANAGER = "kfp-flywheel"
"""Who we are to the API server's account of who set which field."""
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Kind(NamedTuple):
    """A custom resource: group, version, plural."""

    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}"


def connect() -> client.ApiClient:
    """The cluster that this pod is in, or the one of the kubeconfig.

    Raises:
        PlatformError: Neither is there, or it does not answer.
    """
    file = os.environ.get("KUBECONFIG")  # asked now: the library asks once, when it is imported
    try:
        settings = client.Configuration()
        settings.retries = 0  # `patiently` tries again, and without urllib3's warnings
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not file:
            config.load_incluster_config(settings)
        else:
            config.load_kube_config(file, client_configuration=settings)
        api = client.ApiClient(settings)
    except config.ConfigException as error:
        raise PlatformError(
            f"no cluster is known: {str(error).rstrip('.')}.", "set KUBECONFIG, or run in a pod"
        ) from error
    with explained(f"the cluster at {api.configuration.host} does not answer"):
        patiently(lambda: client.VersionApi(api).get_code(_request_timeout=5), FIRST_S)
    return api


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the API server says into an error for a person that begins with `what`."""
    try:
        yield
    except client.ApiException as error:
        message = message_of(error)
        if "unknown field" in message:
            raise UserError(
                f"{what}: the installed version of this kind lacks it: {message}",
                "install a newer one, or take the setting out of the platform file",
            ) from error
        if error.status in (400, 422) or (error.status == 403 and "denied the request" in message):
            raise UserError(f"{what}: {message}", "correct the platform file, or the cluster's policy") from error
        if error.status == 403:
            raise PlatformError(
                f"{what}: {message}", "flywheel doctor --platform FILE shows what is missing"
            ) from error
        if error.status == 409:
            raise Conflict(f"{what}: {message}") from error
        raise PlatformError(f"{what}: {error.status} {message}") from error
    except urllib3.exceptions.HTTPError as error:
        raise PlatformError(f"{what}: {getattr(error, 'reason', error)}.", "kubectl cluster-info") from error


def message_of(error: client.ApiException) -> str:
    """What the API server says."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def patiently(call: Callable[[], T], away_s: float = AWAY_S) -> T:
    """Call the API server again while it is away or overloaded.

    Raises:
        urllib3.exceptions.HTTPError, client.ApiException: It still is, after `away_s` seconds; or another error.
    """
    end, pause = time.monotonic() + away_s, 0.1
    while True:
        try:
            return call()
        except client.ApiException as error:
            if error.status not in (429, 500, 502, 503, 504) or time.monotonic() > end:
                raise
        except urllib3.exceptions.HTTPError:
            if time.monotonic() > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


class Objects:
    """Custom resources in one namespace."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.api, self._namespace = client.CustomObjectsApi(api), namespace

    def at(self, kind: Kind) -> tuple[str, str, str, str]:
        """Where a kind's objects are: the first arguments of every call."""
        return kind.group, kind.version, self._namespace, kind.plural

    def get(self, kind: Kind, name: str) -> dict[str, Any] | None:
        """An object, or None if there is none."""
        try:
            found: dict[str, Any] = patiently(lambda: self.api.get_namespaced_custom_object(*self.at(kind), name))
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def create(self, kind: Kind, wanted: dict[str, Any], rehearsal: bool = False) -> bool:
        """Create an object; False if there is one of its name.

        What the installed version of its kind does not know is refused: by itself the API server would drop it.

        Args:
            rehearsal: Whether all is checked as ever, and nothing is created.

        Raises:
            PlatformError: The kind, or the namespace, is not known.
        """
        dry = {"dry_run": "All"} if rehearsal else {}
        try:
            patiently(
                lambda: self.api.create_namespaced_custom_object(
                    *self.at(kind), wanted, field_manager=MANAGER, field_validation="Strict", **dry
                )
            )
        except client.ApiException as error:
            if error.status == 409:
                return False
            if error.status == 404:
                name = f"{kind.plural}.{kind.group}"
                raise PlatformError(
                    f"this cluster has no {name} in version {kind.version}, or no namespace {self._namespace}.",
                    f"kubectl get crd {name}; kubectl get namespace {self._namespace}",
                ) from error
            raise
        return True

    def list(self, kind: Kind, selector: str) -> list[dict[str, Any]]:
        """All objects with these labels."""
        found = patiently(lambda: self.api.list_namespaced_custom_object(*self.at(kind), label_selector=selector))
        return [
            {"apiVersion": kind.api_version, "kind": found["kind"].removesuffix("List"), **item}
            for item in found["items"]
        ]

    def replace(self, kind: Kind, wanted: dict[str, Any]) -> None:
        """Replace an object, if it is still of the resourceVersion in `wanted`."""
        self.api.replace_namespaced_custom_object(
            *self.at(kind), wanted["metadata"]["name"], wanted, field_manager=MANAGER
        )

    def patch(self, kind: Kind, name: str, change: dict[str, Any]) -> None:
        """Merge a change into an object. One that is gone is no error."""
        try:
            patiently(
                lambda: self.api.patch_namespaced_custom_object(*self.at(kind), name, change, field_manager=MANAGER)
            )
        except client.ApiException as error:
            if error.status != 404:
                raise

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object and what it owns. One that is gone is no error."""
        try:
            patiently(
                lambda: self.api.delete_namespaced_custom_object(*self.at(kind), name, propagation_policy="Background")
            )
        except client.ApiException as error:
            if error.status != 404:
                raise

    def follow(self, kind: Kind, name: str, tick_s: int) -> Iterator[dict[str, Any] | None]:
        """Give an object now, at each change, and again at least every `tick_s` seconds; None when it is gone.

        Nothing is missed: whatever breaks the watch (410, a restart of the API server), the object is read again.

        Raises:
            client.ApiException: It may not be followed.
        """
        while True:
            found = self.get(kind, name)
            yield found
            if found is None:
                return
            try:
                for event in watch.Watch().stream(
                    self.api.list_namespaced_custom_object,
                    *self.at(kind),
                    field_selector=f"metadata.name={name}",
                    resource_version=found["metadata"]["resourceVersion"],
                    timeout_seconds=tick_s,
                    _request_timeout=(5, tick_s + 5),
                ):
                    if event["type"] == "DELETED":
                        break
                    if event["type"] in ("ADDED", "MODIFIED"):
                        yield event["object"]
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                _refuse_forbidden(error)  # read it again; if that fails too, `patiently` waits, or says why

    def follow_all(self, kind: Kind, selector: str, tick_s: int) -> Iterator[dict[str, dict[str, Any]]]:
        """Give all objects with these labels by name: now, at each change, and at least every `tick_s` seconds.

        What was given is never changed. All is read anew when the watch breaks, so nothing is missed.

        Raises:
            PlatformError: They may not be followed, or the API server is away for too long.
        """
        with explained(f"{kind.plural} cannot be followed"):
            yield from self._follow_all(kind, selector, tick_s)

    def _follow_all(self, kind: Kind, selector: str, tick_s: int) -> Iterator[dict[str, dict[str, Any]]]:
        while True:
            listed = patiently(lambda: self.api.list_namespaced_custom_object(*self.at(kind), label_selector=selector))
            found: dict[str, dict[str, Any]] = {item["metadata"]["name"]: item for item in listed["items"]}
            yield found
            try:
                for event in watch.Watch().stream(
                    self.api.list_namespaced_custom_object,
                    *self.at(kind),
                    label_selector=selector,
                    resource_version=listed["metadata"]["resourceVersion"],
                    timeout_seconds=tick_s,
                    _request_timeout=(5, tick_s + 5),
                ):
                    name = event["object"]["metadata"].get("name")
                    if event["type"] == "DELETED":
                        found = {other: item for other, item in found.items() if other != name}
                    elif event["type"] in ("ADDED", "MODIFIED"):
                        found = {**found, name: event["object"]}
                    yield found
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                _refuse_forbidden(error)


def _refuse_forbidden(error: Exception) -> None:
    """What is forbidden stays so: to ask again at once would never end."""
    if getattr(error, "status", None) == 403:
        raise error


def owner(api: client.ApiClient, namespace: str) -> dict[str, Any] | None:
    """The Argo Workflow that this step's pod belongs to, as an ownerReference; None outside KFP.

    The pod itself would be the wrong owner: what it started would die with it, and could not be adopted. In another
    namespace there is none: the garbage collector takes an owner that is elsewhere for dead.
    """
    pod = os.environ.get("KFP_POD_NAME")
    if not pod or not NAMESPACE.exists() or NAMESPACE.read_text().strip() != namespace:
        return None
    with explained(f"pod {pod} cannot be read"):
        found = patiently(lambda: client.CoreV1Api(api).read_namespaced_pod(pod, namespace))
    for reference in found.metadata.owner_references or ():
        if reference.kind == "Workflow":
            return {
                "apiVersion": reference.api_version,
                "kind": reference.kind,
                "name": reference.name,
                "uid": reference.uid,
                "blockOwnerDeletion": False,
            }
    return None
