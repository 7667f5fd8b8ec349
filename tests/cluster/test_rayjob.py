"""RayJobs on a real API server with the real operator; no node is needed."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp_flywheel.components.runtime.adapters import kubernetes
from kfp_flywheel.components.runtime.adapters.kubernetes import Kind, Objects, patiently
from kfp_flywheel.components.runtime.adapters.rayjob.build import RAYJOB, build
from kfp_flywheel.components.runtime.adapters.rayjob.jobs import TERMINATED, RayJobs
from kfp_flywheel.components.runtime.config import Pods
from kfp_flywheel.components.runtime.errors import Conflict, FlywheelError, JobFailed, PlatformError, UserError
from kubernetes import client

from tests.waiting import wait_for

from .control import ControlPlane
from .waiter import IMAGE, NOWHERE, waiting

KINDS = (("ray.io", "v1", "rayjobs"), ("ray.io", "v1", "rayclusters"))


class Cluster:
    """What is in a namespace."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self.objects, self.core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def rayjobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = patiently(
            lambda: self.objects.list_namespaced_custom_object(*RAYJOB[:2], self.namespace, RAYJOB.plural)
        )["items"]
        return found

    def delete(self, name: str) -> None:
        self.objects.delete_namespaced_custom_object(*RAYJOB[:2], self.namespace, RAYJOB.plural, name)

    def count(self) -> int:
        """All objects that jobs leave behind."""
        found = [
            self.objects.list_namespaced_custom_object(*kind[:2], self.namespace, kind[2])["items"] for kind in KINDS
        ]
        pods, services = (
            self.core.list_namespaced_pod(self.namespace),
            self.core.list_namespaced_service(self.namespace),
        )
        jobs = client.BatchV1Api(self.api).list_namespaced_job(self.namespace)
        return sum(map(len, [*found, pods.items, services.items, jobs.items]))


@pytest.fixture
def there(cluster: client.ApiClient, namespace: str) -> Cluster:
    return Cluster(cluster, namespace)


@pytest.fixture
def nowhere(there: Cluster) -> Iterator[Cluster]:
    """A cluster that has no node for Ray, whoever runs it; and nothing is left at the end."""
    yield there
    wait_for(lambda: there.count() == 0, 30)


AWAY_S = 30
HARD = NOWHERE.but(wait_s=2)


def ended(jobs: RayJobs, name: str, lines: list[str]) -> FlywheelError:
    with pytest.raises(FlywheelError) as found:
        jobs.wait(name, lines.append)
    return found.value


def test_what_is_built_is_accepted_whole(there: Cluster) -> None:
    """A dry run on the API server, which gives back what it would keep."""
    pods = Pods(
        secrets={"a": ("KEY",)}, pull_secrets=("b",), env={"A": "1"}, node_selector={"c": "d"}, labels={"e": "f"},
        tolerations=({"key": "g", "operator": "Exists"},), host_paths=("/opt",), min_workers=0,
    )  # fmt: skip
    for made in (build(waiting(), there.namespace, Pods()), build(waiting(gpus=1, workers=2), there.namespace, pods)):
        kept = there.objects.create_namespaced_custom_object(
            *RAYJOB[:2], there.namespace, RAYJOB.plural, made, dry_run="All", field_validation="Strict"
        )
        assert kept["spec"]["rayClusterSpec"] == made["spec"]["rayClusterSpec"] | kept["spec"]["rayClusterSpec"]


def test_a_setting_that_the_installed_kuberay_lacks_is_refused(there: Cluster) -> None:
    """KubeRay 1.4 does not know authOptions; by itself the API server would drop them, and Ray be open to all."""
    told = r"lacks it: .*unknown field \"spec\.rayClusterSpec\.authOptions\""
    with pytest.raises(UserError, match=told):
        RayJobs(there.namespace, Pods(ray_token=True)).submit(waiting())
    assert there.rayjobs() == []


def test_a_kind_that_is_not_installed_and_a_namespace_that_is_not_there_are_named(there: Cluster) -> None:
    kind = Kind("ray.io", "v9", "rayjobs")
    with pytest.raises(PlatformError, match=r"no rayjobs\.ray\.io in version v9, or no namespace"):
        Objects(there.api, there.namespace).create(kind, {"metadata": {"name": "x"}})
    with pytest.raises(PlatformError, match="or no namespace nowhere"):
        RayJobs("nowhere", Pods()).submit(waiting())


def test_the_same_job_is_adopted_and_another_one_of_its_name_refused(nowhere: Cluster) -> None:
    jobs = RayJobs(nowhere.namespace, HARD)
    jobs.submit(waiting())
    first = nowhere.rayjobs()
    RayJobs(nowhere.namespace, HARD).submit(waiting())
    assert [found["metadata"]["uid"] for found in nowhere.rayjobs()] == [first[0]["metadata"]["uid"]]
    with pytest.raises(Conflict, match="of specification h1, not h2"):
        jobs.submit(waiting(hash="h2"))
    jobs.cancel("train-1")
    jobs.cancel("train-1")


def test_a_job_without_a_node_waits_says_so_and_gives_up(nowhere: Cluster) -> None:
    jobs, lines = RayJobs(nowhere.namespace, HARD), list[str]()
    jobs.submit(waiting())
    error = ended(jobs, "train-1", lines)
    assert isinstance(error, PlatformError)
    assert "waited for 2 s for a node" in str(error)
    assert "pods.wait_s" in error.next
    assert any("waits for a node" in line for line in lines)


def test_a_job_deleted_by_hand_ends_its_step(nowhere: Cluster) -> None:
    jobs = RayJobs(nowhere.namespace, NOWHERE)
    jobs.submit(waiting())
    threading.Timer(1, nowhere.delete, ["train-1"]).start()
    error = ended(jobs, "train-1", [])
    assert isinstance(error, JobFailed)
    assert "was deleted while it was at work" in str(error)


def test_a_full_quota_is_an_error_that_names_it(there: Cluster) -> None:
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"count/rayjobs.ray.io": "0"}}}
    there.core.create_namespaced_resource_quota(there.namespace, quota)

    def refused() -> bool:
        try:
            RayJobs(there.namespace, HARD).submit(waiting())
        except FlywheelError as error:
            assert "exceeded quota: small" in str(error)  # noqa: PT017
            return True
        RayJobs(there.namespace, HARD).submit(waiting())
        there.delete("train-1")
        return False

    wait_for(refused, 20)


def test_a_quota_of_pods_is_waited_for_and_named(nowhere: Cluster) -> None:
    nowhere.core.create_namespaced_resource_quota(
        nowhere.namespace, {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "0"}}}
    )
    wait_for(lambda: bool(nowhere.core.read_namespaced_resource_quota("small", nowhere.namespace).status.hard), 20)
    jobs, lines = RayJobs(nowhere.namespace, HARD), list[str]()
    jobs.submit(waiting())
    assert "waited for 2 s for quota: small" in str(ended(jobs, "train-1", lines))
    assert any("waits for quota: small, requested: pods=1" in line for line in lines)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("policy", 'violates PodSecurity "restricted'),
        ("limit", "maximum memory usage"),
        ("account", '"nobody" not found'),
    ],
)
def test_pods_that_are_never_let_in_are_not_waited_for(nowhere: Cluster, what: str, says: str) -> None:
    pods = NOWHERE
    if what == "policy":
        enforced = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
        nowhere.core.patch_namespace(nowhere.namespace, enforced)
        pods = NOWHERE.but(host_paths=["/opt"])
    elif what == "limit":
        limits = {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]}
        nowhere.core.create_namespaced_limit_range(nowhere.namespace, {"metadata": {"name": "small"}, "spec": limits})
    else:
        pods = NOWHERE.but(service_account="nobody")
    jobs = RayJobs(nowhere.namespace, pods)
    jobs.submit(waiting())
    error = ended(jobs, "train-1", [])
    assert isinstance(error, PlatformError)
    assert f"namespace {nowhere.namespace} does not let its pods in" in str(error)
    assert says in str(error)


def test_a_job_in_a_queue_waits_without_end_if_told_to(nowhere: Cluster) -> None:
    """Kueue holds a RayJob by `suspend`, and lets it go by taking that away."""
    endless = NOWHERE.but(labels={"kueue.x-k8s.io/queue-name": "team"})
    held = build(waiting(), nowhere.namespace, endless)
    held["spec"]["suspend"] = True
    nowhere.objects.create_namespaced_custom_object(*RAYJOB[:2], nowhere.namespace, RAYJOB.plural, held)
    jobs, lines = RayJobs(nowhere.namespace, endless), list[str]()
    jobs.submit(waiting())

    def heard(line: str) -> None:
        lines.append(line)
        if "its turn in the queue" in line:
            let_go = {"spec": {"suspend": False}}
            nowhere.objects.patch_namespaced_custom_object(
                *RAYJOB[:2], nowhere.namespace, RAYJOB.plural, "train-1", let_go
            )
        if "waits for a node" in line:
            nowhere.delete("train-1")

    with pytest.raises(JobFailed, match="was deleted"):
        jobs.wait("train-1", heard)
    assert nowhere.rayjobs() == [] or nowhere.rayjobs()[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_a_job_ends_with_the_workflow_of_its_step(
    nowhere: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As KFP has it: Argo's Workflow owns the step's pod, and our job belongs to the same Workflow."""
    workflows = ("argoproj.io", "v1alpha1", nowhere.namespace, "workflows")
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "run-1"}, "spec": {}}
    made = nowhere.objects.create_namespaced_custom_object(*workflows, workflow)
    owned = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-1", "uid": made["metadata"]["uid"]}
    pod = {"metadata": {"name": "step-1", "ownerReferences": [owned]}}
    pod["spec"] = {"containers": [{"name": "main", "image": IMAGE}], "nodeSelector": HARD.node_selector}
    nowhere.core.create_namespaced_pod(nowhere.namespace, pod)
    monkeypatch.setenv("KFP_POD_NAME", "step-1")
    monkeypatch.setattr(kubernetes, "NAMESPACE", tmp_path / "namespace")
    (tmp_path / "namespace").write_text(nowhere.namespace)

    RayJobs(nowhere.namespace, HARD).submit(waiting())
    assert nowhere.rayjobs()[0]["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    nowhere.objects.delete_namespaced_custom_object(*workflows, "run-1")
    wait_for(lambda: nowhere.rayjobs() == [], 30)


def test_what_validation_refuses_is_the_users_to_mend(nowhere: Cluster) -> None:
    jobs = RayJobs(nowhere.namespace, HARD)
    made = build(waiting(), nowhere.namespace, HARD)
    made["spec"]["backoffLimit"] = -1
    nowhere.objects.create_namespaced_custom_object(*RAYJOB[:2], nowhere.namespace, RAYJOB.plural, made)
    jobs.submit(waiting())
    error = ended(jobs, "train-1", [])
    assert isinstance(error, UserError)
    assert "refused by KubeRay" in str(error)


def command(namespace: str) -> list[str]:
    return [sys.executable, "-m", "tests.cluster.waiter", namespace, "train-1"]


@pytest.fixture
def waiter(nowhere: Cluster) -> Iterator[subprocess.Popen[str]]:
    """A step that waits for its job."""
    with subprocess.Popen(command(nowhere.namespace), stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout is not None
        for line in step.stdout:
            if "waits for" in line:
                break
        yield step
        step.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_step_that_is_asked_to_end_deletes_its_job_first(
    waiter: subprocess.Popen[str], nowhere: Cluster, number: signal.Signals
) -> None:
    waiter.send_signal(number)
    code = waiter.wait(10)
    assert code == (TERMINATED if number == signal.SIGTERM else -signal.SIGINT)
    assert nowhere.rayjobs() == [] or nowhere.rayjobs()[0]["metadata"].get("deletionTimestamp")


def test_a_step_that_is_killed_finds_its_job_again(waiter: subprocess.Popen[str], nowhere: Cluster) -> None:
    uid = nowhere.rayjobs()[0]["metadata"]["uid"]
    waiter.kill()
    waiter.wait(10)
    jobs = RayJobs(nowhere.namespace, HARD)
    jobs.submit(waiting())
    assert [found["metadata"]["uid"] for found in nowhere.rayjobs()] == [uid]
    jobs.cancel("train-1")


@pytest.mark.faults
def test_a_restart_of_the_api_server_is_not_noticed(
    plane: ControlPlane, waiter: subprocess.Popen[str], nowhere: Cluster
) -> None:
    plane.processes.stop("kube-apiserver")
    plane.api_server()
    assert waiter.poll() is None
    patiently(lambda: nowhere.delete("train-1"))
    out, _ = waiter.communicate(timeout=30)
    assert waiter.returncode == 1
    assert "submitted" not in out


@pytest.mark.faults
def test_kuberay_away_for_a_while_only_costs_time(plane: ControlPlane, nowhere: Cluster) -> None:
    plane.processes.stop("kuberay")
    jobs, lines = RayJobs(nowhere.namespace, HARD.but(wait_s=AWAY_S + 10)), list[str]()
    jobs.submit(waiting())
    threading.Timer(AWAY_S, plane.operators).start()  # the fault itself
    error = ended(jobs, "train-1", lines)
    assert any("waits for KubeRay to take it up" in line for line in lines)
    assert f"waited for {AWAY_S + 10} s for a node" in str(error)


def test_a_step_killed_before_its_job_has_a_status_finds_it_again(plane: ControlPlane, nowhere: Cluster) -> None:
    plane.processes.stop("kuberay")
    try:
        with subprocess.Popen(command(nowhere.namespace), stdout=subprocess.PIPE) as step:
            wait_for(lambda: bool(nowhere.rayjobs()), 30)
            step.kill()
        (made,) = nowhere.rayjobs()
        assert "status" not in made
    finally:
        plane.operators()
    jobs, lines = RayJobs(nowhere.namespace, HARD), list[str]()
    jobs.submit(waiting())
    assert [found["metadata"]["uid"] for found in nowhere.rayjobs()] == [made["metadata"]["uid"]]
    assert "waited for 2 s for a node" in str(ended(jobs, "train-1", lines))
