"""From a job to a RayJob, and from what a cluster says to a sentence: no cluster is asked."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.rayjob.build import NAME_LIMIT, SPEC_HASH, build, name_of
from kfp_flywheel.components.runtime.adapters.rayjob.reasons import Seen, failure, hopeless, state_of, waits_for
from kfp_flywheel.components.runtime.config import Pods
from kfp_flywheel.components.runtime.errors import JobFailed, PlatformError, UserError
from kfp_flywheel.components.runtime.ports import JobSpec

IMAGE = "registry.example/train@sha256:" + "0" * 64


def job(**changes: Any) -> JobSpec:
    return JobSpec(
        **(
            {"name": "train-0123", "module": "m", "spec_uri": "s3://b/spec.json", "spec_hash": "h1", "image": IMAGE}
            | changes
        )
    )


def of(pods: Pods | None = None, **changes: Any) -> dict[str, Any]:
    return build(job(**changes), "team", pods or Pods())


def workers(rayjob: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return group


def templates(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], workers(rayjob)["template"], rayjob["spec"]["submitterPodTemplate"]]


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_names_fit_kuberay_and_differ_where_jobs_do(one: str, other: str) -> None:
    names = [name_of(job(name=name)) for name in (one, other)]
    for name in names:
        assert len(name) <= NAME_LIMIT
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert (names[0] == names[1]) is (one == other)


def test_workers_get_what_the_job_asks_for_and_the_head_computes_nothing() -> None:
    made = of(workers=3, cpus=4, gpus=1)
    assert (workers(made)["replicas"], workers(made)["minReplicas"], workers(made)["maxReplicas"]) == (3, 3, 3)
    resources = workers(made)["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["cpu"] == "4"
    assert resources["limits"]["nvidia.com/gpu"] == 1
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in workers(made)["template"]["spec"][
        "tolerations"
    ]
    head = made["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "enableInTreeAutoscaling" not in made["spec"]["rayClusterSpec"]


def test_fewer_workers_at_the_start_make_ray_scale_them() -> None:
    made = of(Pods(min_workers=0), workers=3)
    assert (workers(made)["minReplicas"], workers(made)["maxReplicas"]) == (0, 3)
    assert made["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] == "v2"


def test_every_pod_is_unprivileged_and_outside_the_mesh() -> None:
    for template in templates(of()):
        assert template["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_secrets_go_by_name_and_nothing_else_is_written_down() -> None:
    made = of(
        Pods(secrets={"store-key": ("TOKEN",)}, pull_secrets=("registry",), service_account="trainer", env={"A": "1"})
    )
    for template in templates(made):
        assert template["spec"]["serviceAccountName"] == "trainer"
        assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        container = template["spec"]["containers"][0]
        token = {"secretKeyRef": {"name": "store-key", "key": "TOKEN"}}
        assert {"name": "TOKEN", "valueFrom": token} in container["env"]
        assert {"name": "A", "value": "1"} in container["env"]


def test_ray_asks_for_a_token_or_is_told_not_to() -> None:
    silent, asking = of(), of(Pods(ray_token=True))
    assert "authOptions" not in silent["spec"]["rayClusterSpec"]
    assert asking["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for made, said in ((silent, True), (asking, False)):
        for template in templates(made):
            given = {variable["name"] for variable in template["spec"]["containers"][0]["env"]}
            assert ("RAY_AUTH_MODE" in given) is said


def test_a_job_always_has_a_deadline_an_end_and_the_hash_of_its_specification() -> None:
    made = of(deadline_s=600)
    assert made["spec"]["activeDeadlineSeconds"] == 600
    assert made["spec"]["shutdownAfterJobFinishes"] is True
    assert made["spec"]["ttlSecondsAfterFinished"] == 0
    assert made["metadata"]["annotations"][SPEC_HASH] == "h1"
    assert "ownerReferences" not in made["metadata"]
    assert "suspend" not in made["spec"]  # Kueue's to set


def test_an_image_without_a_digest_is_refused() -> None:
    with pytest.raises(UserError, match=r"'train:1'.*no digest"):
        of(image="train:1")
    assert of(Pods(image_pull_policy="Never"), image="train:1")


@pytest.mark.parametrize(
    ("deployment", "status", "state"),
    [
        ("", "", "waiting"),
        ("Initializing", "", "waiting"),
        ("Suspended", "", "waiting"),
        ("Running", "PENDING", "waiting"),
        ("Running", "RUNNING", "running"),
        ("Complete", "SUCCEEDED", "succeeded"),
        ("Complete", "STOPPED", "failed"),
        ("Complete", "FAILED", "failed"),
        ("Failed", "RUNNING", "failed"),
        ("ValidationFailed", "", "failed"),
    ],
)
def test_complete_alone_is_no_success(deployment: str, status: str, state: str) -> None:
    assert state_of({"jobDeploymentStatus": deployment, "jobStatus": status}) == state


def pod(**container: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "ray-worker", "resources": {"limits": {"memory": "8Gi"}}}]}
    status = {"containerStatuses": [{"name": "ray-worker", "image": IMAGE, "state": {}, **container}]}
    return {"metadata": {"name": "worker-1"}, "spec": spec, "status": status}


def test_a_failure_tells_what_happened_and_the_next_command() -> None:
    killed = pod(lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}})
    status = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit 3"}
    error = failure("train-1", "team", Seen(status, [killed], (), ("epoch 1", "Traceback: out of luck")))
    assert isinstance(error, JobFailed)
    for part in ("AppFailed", "more than 8Gi of memory", "pods.worker_memory", "out of luck"):
        assert part in str(error)
    assert str(error).endswith("kubectl -n team describe rayjob train-1")


def test_what_kuberay_refuses_is_the_users_to_mend() -> None:
    error = failure("train-1", "team", Seen({"jobDeploymentStatus": "ValidationFailed", "message": "name too long"}))
    assert isinstance(error, UserError)
    assert "name too long" in str(error)


def test_a_refusal_that_is_said_in_an_event_alone_is_heard() -> None:
    event = {"involvedObject": {"kind": "RayJob", "name": "train-1"}, "reason": "InvalidRayJobSpec", "message": "no"}
    error = hopeless("train-1", "team", Seen({}, [], [event]))
    assert isinstance(error, UserError)
    assert "refused by KubeRay: no" in str(error)


def test_a_long_exception_is_told_by_its_first_line() -> None:
    lines = ("ValueError: an old one", "ray.exceptions.OutOfMemoryError: killed", *(f"tip {n}" for n in range(30)))
    told = str(failure("train-1", "team", Seen({"reason": "AppFailed"}, lines=lines))).splitlines()
    assert told[1:4] == ["ray.exceptions.OutOfMemoryError: killed", "Its last lines:", "tip 10"]


def test_an_image_that_cannot_be_pulled_is_not_waited_for() -> None:
    messages = ("Failed to pull image: not found in registry", "Error: ErrImagePull", "Error: ImagePullBackOff")
    events = [{"involvedObject": {"name": "worker-1"}, "reason": "Failed", "message": text} for text in messages]
    waiting = pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}})
    error = hopeless("train-1", "team", Seen({}, [waiting], events))
    assert isinstance(error, PlatformError)
    assert "not found in registry" in str(error)
    assert hopeless("train-1", "team", Seen({}, [pod(state={"waiting": {"reason": "ContainerCreating"}})])) is None
    assert hopeless("train-1", "team", Seen({}, [pod(state={"waiting": {"reason": "ErrImagePull"}})])) is None


def test_a_pod_that_crashes_at_its_start_is_not_waited_for() -> None:
    last = {"terminated": {"exitCode": 126, "message": "ray: bad interpreter"}}
    crashing = pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=last, restartCount=2)
    error = hopeless("train-1", "team", Seen({}, [crashing]))
    assert isinstance(error, JobFailed)
    assert "exit code 126" in str(error)
    assert "bad interpreter" in str(error)
    once = pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=last, restartCount=1)
    assert hopeless("train-1", "team", Seen({}, [once])) is None


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ('Failed to create head Pod team/, pods "h" is forbidden: violates PodSecurity "restricted"', "violates Pod"),
        ('pods "w" is forbidden: maximum memory usage per Container is 1Gi, but limit is 4Gi', "maximum memory"),
        ('Failed to create head Pod team/, admission webhook "kyverno" denied the request: no root', "no root"),
        ('pods "h" is forbidden: exceeded quota: small, requested: pods=1', ""),
        ('pods "h" is forbidden: status unknown for quota: small, resources: pods', ""),
        ('failed calling webhook "kyverno": connection refused', ""),
    ],
)
def test_pods_that_are_never_let_in_are_not_waited_for(message: str, says: str) -> None:
    about = {"kind": "RayCluster", "name": "train-1-x"}
    event = {"involvedObject": about, "reason": "FailedToCreateHeadPod", "message": message}
    seen = Seen({"jobDeploymentStatus": "Initializing"}, [], [event])
    error = hopeless("train-1", "team", seen)
    if says:
        assert isinstance(error, PlatformError)
        assert "namespace team does not let its pods in: " in str(error)
        assert says in str(error)
    else:
        assert error is None
        assert waits_for(seen).startswith(("quota: small", 'pods that cannot be made: failed calling webhook "kyv'))


def test_waiting_for_a_node_or_a_queue_is_said() -> None:
    event = {"involvedObject": {"name": "worker-1"}, "reason": "FailedScheduling", "message": "0/1 nodes: no GPU."}
    begun = {"jobDeploymentStatus": "Initializing"}
    assert waits_for(Seen(begun, [], [event])) == "a node: 0/1 nodes: no GPU."
    assert waits_for(Seen({})) == "KubeRay to take it up"
    assert "queue" in waits_for(Seen({"jobDeploymentStatus": "Suspended"}))
    assert waits_for(Seen({"jobDeploymentStatus": "Initializing"})) == ""
