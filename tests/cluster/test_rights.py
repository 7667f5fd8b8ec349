"""What roles allow is what is used, on a real API server: nothing more, and without each right something fails."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_flywheel.components.runtime.adapters import kubernetes
from kfp_flywheel.components.runtime.adapters.cluster import RIGHTS
from kfp_flywheel.components.runtime.adapters.kserve import mirror
from kfp_flywheel.components.runtime.adapters.kserve.build import BUDGET, SERVICE, STOP, owner_of
from kfp_flywheel.components.runtime.adapters.kserve.knative import KnativeServing
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.kubernetes import Kind, Objects
from kfp_flywheel.components.runtime.adapters.leader import LEASE
from kfp_flywheel.components.runtime.adapters.rayjob.build import RAYJOB, build
from kfp_flywheel.components.runtime.adapters.rayjob.jobs import RayJobs
from kfp_flywheel.components.runtime.config import Platform, Pods
from kfp_flywheel.components.runtime.errors import FlywheelError, PlatformError, UserError
from kfp_flywheel.components.runtime.ports import EndpointState, Lease, Served
from kfp_flywheel.components.serving import keeper
from kubernetes import client

from tests.releases import release, stable
from tests.waiting import wait_for

from .control import ControlPlane
from .fixtures import a_namespace, platform_without_pods
from .installing import MANIFESTS, Grant, acting_as, granted
from .waiter import IMAGE, NOWHERE, waiting

ROLES = {
    document["metadata"]["name"]: document
    for name in ("steps", "reconciler")
    for document in yaml.safe_load_all((MANIFESTS / f"base/{name}.yaml").read_text())
    if document["kind"] == "Role"
}
STEPS, RECONCILER = (granted(ROLES[f"flywheel-{name}"]) for name in ("steps", "reconciler"))
SCALED = {"min_replicas": 2, "max_replicas": 4}
FORBIDDEN = "is forbidden"
WORKFLOW = Kind("argoproj.io", "v1alpha1", "workflows")


def test_the_doctor_asks_for_rights_that_the_role_of_steps_has() -> None:
    asked = {(*one[:2], verb) for rights in RIGHTS.values() for one in rights for verb in one[2].split()}
    assert asked <= STEPS


class Place:
    """A namespace with the accounts in it, as the administrator sees it."""

    def __init__(self, plane: ControlPlane, cluster: client.ApiClient, namespace: str, folder: Path) -> None:
        self.plane, self.namespace, self.folder = plane, namespace, folder
        self.core, self.objects = client.CoreV1Api(cluster), Objects(cluster, namespace)
        self.number = 0
        for name in ("steps", "reconciler"):
            plane.kubectl("apply", "-n", namespace, "-f", str(MANIFESTS / f"base/{name}.yaml"))
        self.serving, self.knative = KServe(self.platform()), KnativeServing(self.platform("knative"))

    def name(self, what: str) -> str:
        """A new one for each time that something is done."""
        self.number += 1
        return f"{what}-{self.number}"

    def platform(self, mode: str = "standard") -> Platform:
        found = platform_without_pods(self.namespace, mode)
        (self.folder / "store").mkdir(exist_ok=True)
        pods = Pods.of(**found.pods.plain() | SCALED)
        return found.but(pods=pods, store=f"file://{self.folder}/store", tracking=f"sqlite:///{self.folder}/m.db")

    def edit_budget(self, name: str) -> None:
        self.objects.patch(BUDGET, name, {"spec": {"maxUnavailable": 2}})


@pytest.fixture(scope="module")
def place(plane: ControlPlane, cluster: client.ApiClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with a_namespace(cluster) as namespace:
        yield Place(plane, cluster, namespace, tmp_path_factory.mktemp("rights"))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers here, so it need not be waited for."""
    monkeypatch.setattr(mirror, "TRIAL_S", 0.1)
    monkeypatch.setattr(keeper, "SETTLE_S", 0.3)
    monkeypatch.setattr(keeper, "LOOK_S", 0.1)
    monkeypatch.setattr(keeper.Registry, "tell", lambda *given: None)  # a process that asks MLflow only


def beside(state: EndpointState, weight: int = 10, seconds: float = 600) -> EndpointState:
    """The state with version 2 as a canary; with weight 0 it is sent copies."""
    versions = {
        "v1": state.versions["v1"].but(weight=100 - weight),
        "v2": Served(release=release("2", "q"), weight=weight, shadow=not weight),
    }
    return state.but(versions=versions, lease=Lease(owner="run", seconds=seconds, renewed=1.0), changed=time.time())


# What steps do.


def a_job_waits(place: Place) -> None:
    """Submitted by a step of a Workflow, adopted, and given up as no node is there for it."""
    name = place.name("train")
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name}, "spec": {}}
    place.objects.create(WORKFLOW, workflow)
    owner = owner_of(place.objects.get(WORKFLOW, name) or {})
    pod = {"metadata": {"name": name, "ownerReferences": [owner]}}
    pod["spec"] = {"containers": [{"name": "main", "image": IMAGE}], "nodeSelector": NOWHERE.node_selector}
    place.core.create_namespaced_pod(place.namespace, pod)
    (place.folder / "namespace").write_text(place.namespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KFP_POD_NAME", name)
        patch.setattr(kubernetes, "NAMESPACE", place.folder / "namespace")
        assert kubernetes.owner(kubernetes.connect(), place.namespace) is not None
    jobs = RayJobs(place.namespace, NOWHERE.but(wait_s=0.5))
    for _ in range(2):
        jobs.submit(waiting(name))
    with pytest.raises(PlatformError, match=r"waited for 0\.5 s"):
        jobs.wait(name, lambda line: None)


def a_job_ends(place: Place) -> None:
    """KubeRay leaves it alone: it is for another controller. So here is said what becomes of it."""
    name, lines = place.name("train"), list[str]()
    made = build(waiting(name), place.namespace, NOWHERE)
    made["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
    place.objects.create(RAYJOB, made)
    pod = {"metadata": {"name": f"{name}-submitter", "labels": {"job-name": name}}}
    pod["spec"] = {"containers": [{"name": "main", "image": IMAGE}], "nodeName": "nowhere"}
    place.core.create_namespaced_pod(place.namespace, pod)
    place.core.patch_namespaced_pod_status(f"{name}-submitter", place.namespace, {"status": {"phase": "Running"}})

    def becomes(**status: str) -> None:
        place.objects.api.patch_namespaced_custom_object_status(*place.objects.at(RAYJOB), name, {"status": status})

    becomes(jobStatus="RUNNING", jobDeploymentStatus="Running")
    jobs = RayJobs(place.namespace, NOWHERE)
    jobs.submit(waiting(name))

    def end() -> None:
        place.core.delete_namespaced_pod(f"{name}-submitter", place.namespace, grace_period_seconds=0)
        becomes(jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")

    threading.Timer(0.5, end).start()
    jobs.wait(name, lines.append)
    if lines:
        raise PlatformError(lines[0])


def an_endpoint_changes(place: Place) -> None:
    serving, name = KServe(place.platform()), place.name("endpoint")
    first = serving.write(stable(serving.read(name), "1"))
    place.edit_budget(f"{name}-v1")
    both = serving.write(beside(first))
    serving.observe(name)
    second = serving.write(stable(both, "2", "q").but(lease=None))
    serving.write(stable(second, "3", "r"))


def requests_are_copied(place: Place) -> None:
    serving, name = KServe(place.platform()), place.name("endpoint")
    first = serving.write(stable(serving.read(name), "1"))
    with pytest.raises(UserError, match="copies no requests"):
        serving.write(beside(first, weight=0))


def an_endpoint_of_knative_changes(place: Place) -> None:
    serving, name = KnativeServing(place.platform("knative")), place.name("endpoint")
    first = serving.write(stable(serving.read(name), "1"))
    serving.observe(name)
    serving.url(name)
    serving.write(stable(first, "2", "q"))


DONE: list[Callable[[Place], None]] = [
    a_job_waits,
    a_job_ends,
    an_endpoint_changes,
    requests_are_copied,
    an_endpoint_of_knative_changes,
]


def test_steps_use_all_that_their_role_allows_and_do_with_it(place: Place) -> None:
    with acting_as(place.plane, place.namespace, "flywheel-steps", place.folder) as used:
        for act in DONE:
            act(place)
    assert used == STEPS


# What the reconciler does.


Until = Callable[[Callable[[], bool], str], None]


def keeping(place: Place, mode: str, scenario: Callable[[Until], None]) -> list[str]:
    """The reconciler at work while something happens, or until it lacks a right; gives what it says."""
    place.objects.delete(LEASE, keeper.NAME)
    said, failed = list[str](), list[BaseException]()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def lacks() -> bool:
        return any(FORBIDDEN in line for line in said)

    def until(ready: Callable[[], bool], what: str) -> None:
        wait_for(lambda: lacks() or ready(), 40, what)

    def happen() -> None:
        try:
            until(lambda: any("acts now" in line for line in said), "a leader")
            scenario(until)
        except BaseException as error:
            failed.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=happen)
    thread.start()
    try:
        keeper.keep(place.platform(mode), said.append, port=0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed and not lacks():
        raise failed[0]
    return said


def endpoints_are_put_right(place: Place, used: set[Grant]) -> list[str]:
    """What killed rollouts and people with kubectl left, at four endpoints."""
    serving = place.serving
    expired, missing, stopped, promoted = (place.name("endpoint") for _ in range(4))

    def service(name: str, version: str) -> dict[str, Any] | None:
        found = serving.objects.get(SERVICE, f"{name}-{version}")
        return None if found and "deletionTimestamp" in found["metadata"] else found

    def is_stopped(name: str, version: str) -> bool:
        found = service(name, version)
        return found is not None and found["metadata"]["annotations"].get(STOP) == "true"

    def happen(until: Until) -> None:
        states = {
            name: serving.write(stable(serving.read(name), "1")) for name in (expired, missing, stopped, promoted)
        }
        serving.write(beside(states[expired], seconds=3))
        place.edit_budget(f"{expired}-v1")
        serving.objects.delete(SERVICE, f"{missing}-v1")
        serving.objects.patch(SERVICE, f"{stopped}-v1", {"metadata": {"annotations": {STOP: "true"}}})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving, "_tidy", lambda *given: None)
            serving.write(stable(states[promoted], "2", "q"))
        until(lambda: serving.read(expired).versions.keys() == {"v1"}, "a canary taken back")
        until(lambda: service(missing, "v1") is not None, "a version made again")
        until(lambda: not is_stopped(stopped, "v1"), "a version woken")
        until(lambda: is_stopped(promoted, "v1"), "the champion before without pods")
        until(lambda: ("", "pods", "list") in used, "a look at pods")

    return keeping(place, "standard", happen)


def endpoints_of_knative_are_put_right(place: Place, used: set[Grant]) -> list[str]:
    serving, name = place.knative, place.name("endpoint")

    def happen(until: Until) -> None:
        first = serving.write(stable(serving.read(name), "1"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving, "_approach", lambda *given, **named: None)
            serving.write(stable(first, "2", "q"))
        until(lambda: (SERVICE.group, SERVICE.plural, "update") in used, "the next version asked for")

    return keeping(place, "knative", happen)


KEPT = [endpoints_are_put_right, endpoints_of_knative_are_put_right]


def test_the_reconciler_uses_all_that_its_role_allows_and_does_with_it(place: Place) -> None:
    with acting_as(place.plane, place.namespace, "flywheel-reconciler", place.folder) as used:
        for act in KEPT:
            assert not [line for line in act(place, used) if FORBIDDEN in line]
    assert used == RECONCILER


# And without one of the rights.


def without(place: Place, role: str, grant: Grant) -> None:
    """Take one right away, and wait until the API server knows."""
    group, resource, verb = grant
    rules = [
        {"apiGroups": [one], "resources": [what], "verbs": [how]}
        for one, what, how in granted(ROLES[role])
        if (one, what, how) != grant
    ]
    api = place.core.api_client
    client.RbacAuthorizationV1Api(api).replace_namespaced_role(role, place.namespace, ROLES[role] | {"rules": rules})
    name, _, sub = resource.partition("/")
    attributes = {"namespace": place.namespace, "group": group, "resource": name, "subresource": sub, "verb": verb}
    user = f"system:serviceaccount:{place.namespace}:{role}"
    review = {"spec": {"user": user, "resourceAttributes": attributes}}
    wait_for(
        lambda: not client.AuthorizationV1Api(api).create_subject_access_review(review).status.allowed, 10, "the role"
    )


def said_of(grant: Grant) -> str:
    """What the API server says of a right that is missing."""
    return f'cannot {grant[2]} resource "{grant[1]}" in API group "{grant[0]}"'


FEW = {("ray.io", "rayjobs", "watch"), ("", "pods/log", "get"), ("gateway.networking.k8s.io", "httproutes", "update")}


@pytest.mark.parametrize(
    "grant",
    [pytest.param(grant, marks=() if grant in FEW else pytest.mark.faults) for grant in sorted(STEPS)],
    ids=lambda grant: "-".join(filter(None, grant)),
)
def test_a_step_that_lacks_a_right_fails_and_says_which(grant: Grant, place: Place) -> None:
    without(place, "flywheel-steps", grant)
    acting = acting_as(place.plane, place.namespace, "flywheel-steps", place.folder)
    with acting, pytest.raises((FlywheelError, AssertionError)) as found:  # noqa: PT012 - which one does, is not told
        for act in DONE:
            act(place)
    assert said_of(grant) in str(found.value)


@pytest.mark.faults
@pytest.mark.parametrize("grant", sorted(RECONCILER), ids=lambda grant: "-".join(filter(None, grant)))
def test_a_reconciler_that_lacks_a_right_says_which(grant: Grant, place: Place) -> None:
    without(place, "flywheel-reconciler", grant)
    with acting_as(place.plane, place.namespace, "flywheel-reconciler", place.folder) as used:
        said = [line for act in KEPT for line in act(place, used)]
    assert any(said_of(grant) in line for line in said), said
