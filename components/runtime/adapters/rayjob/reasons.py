"""Why a RayJob ended, or does not begin, from the objects that tell of it. Pure: what was read is handed in."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import FlywheelError, JobFailed, PlatformError, UserError

State = Literal["waiting", "running", "succeeded", "failed"]
TRY_AGAIN = {
    "SubmissionFailed",
    "JobDeploymentStatusTransitionGracePeriodExceeded",
    "JobStatusCheckTimeoutExceeded",
    "PreRunningDeadlineExceeded",
}
"""Reasons of KubeRay's that are nobody's mistake."""
CRASHES = 2
"""Restarts of a container after which it is not waited for any longer."""
LAST_LINES = 20
RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)\b")
QUOTA = re.compile(r"(?:exceeded|status unknown for) quota: (.*)", re.DOTALL)
"""A quota that is full, or so new that what it holds is not counted yet: either may let a pod in soon."""
REFUSED = re.compile(r"is forbidden: (.*)|(admission webhook .* denied the request: .*)", re.DOTALL)
"""What the API server says of a pod that a policy, a limit or a webhook does not let in."""
NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}


@dataclass(frozen=True)
class Seen:
    """What the cluster says of a job.

    Args:
        status: Of the RayJob.
        pods: Of its cluster and its submitter.
        events: Of the RayJob and those pods, oldest first.
        lines: The last lines that the job printed.
    """

    status: Mapping[str, Any]
    pods: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    lines: Sequence[str] = ()


def state_of(status: Mapping[str, Any]) -> State:
    """Where a RayJob stands. `Complete` alone is no success: a stopped job is complete too."""
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment == "Complete":
        return "succeeded" if job == "SUCCEEDED" else "failed"
    if deployment in ("Failed", "ValidationFailed"):
        return "failed"
    return "running" if job == "RUNNING" else "waiting"


def worth_another_try(status: Mapping[str, Any]) -> bool:
    """Whether it failed by nobody's mistake."""
    return status.get("reason") in TRY_AGAIN


def failure(name: str, namespace: str, seen: Seen) -> FlywheelError:
    """One error for a person: what happened, what the pods say, the last lines, the next command."""
    status = seen.status
    where = _describe(name, namespace)
    reason, message = status.get("reason") or status.get("jobStatus") or "", str(status.get("message") or "").strip()
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return UserError(f"job {name} was refused by KubeRay: {message}", where)
    if reason == "DeadlineExceeded":
        said = f"job {name} did not end within its deadline."
    else:
        said = f"job {name} failed: {reason or 'no reason was given'}."
    troubles = [trouble for pod in seen.pods for trouble in troubles_of(pod)]
    lines = [line for line in seen.lines or message.splitlines() if line.strip()]
    last = lines[-LAST_LINES:]
    # Ray's own exceptions are longer than that, and tell what happened in their first line.
    raised = next((line for line in reversed(lines) if RAISED.match(line) and line not in last), None)
    told = [said, *troubles, *([raised] if raised else []), *(["Its last lines:"] if last else []), *last]
    return JobFailed("\n".join(told), where)


def _describe(name: str, namespace: str) -> str:
    return f"kubectl -n {namespace} describe rayjob {name}"


def hopeless(name: str, namespace: str, seen: Seen) -> FlywheelError | None:
    """Why a job that has not begun never will: it or its pods are refused, an image cannot be had, or crashes."""
    for event in seen.events:
        # KubeRay 1.4 says so in an event alone: the status stays empty.
        about, reason = event.get("involvedObject", {}), event.get("reason", "")
        if about.get("kind") == "RayJob" and reason.startswith("InvalidRayJob"):
            return UserError(f"job {name} was refused by KubeRay: {event['message']}", _describe(name, namespace))
        refused = REFUSED.search(event.get("message", ""))
        if about.get("kind") == "RayCluster" and refused and not QUOTA.search(event["message"]):
            return PlatformError(
                f"job {name}: namespace {namespace} does not let its pods in: {refused[1] or refused[2]}",
                "change that namespace's rules, or pods in the platform file",
            )
    for pod in seen.pods:
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in NO_IMAGE - {"ErrImagePull"}:  # that one is tried again once, soon
                return PlatformError(
                    f"job {name}: the image {container['image']} cannot be pulled: {_pull_error(pod, seen, waiting)}",
                    "correct images.train or pods.pull_secrets in the platform file",
                )
            if waiting.get("reason") == "CrashLoopBackOff" and container.get("restartCount", 0) >= CRASHES:
                last = container.get("lastState", {}).get("terminated") or {}
                said = (
                    f"job {name}: pod {pod['metadata']['name']} ends at its start with exit code {last.get('exitCode')}"
                )
                return JobFailed(f"{said}:\n{last.get('message', '').strip()}", _describe(name, namespace))
    return None


def waits_for(seen: Seen) -> str:
    """What a job that has not begun waits for; empty if that is nothing unusual."""
    if not seen.status.get("jobDeploymentStatus"):
        return "KubeRay to take it up"
    if seen.status["jobDeploymentStatus"] == "Suspended":
        return "its turn in the queue"
    for event in reversed(seen.events):
        message = str(event.get("message", ""))
        if event.get("reason") == "FailedScheduling":
            return f"a node: {message}"
        if quota := QUOTA.search(message):
            return f"quota: {quota[1]}"
        if event.get("reason", "").startswith(("FailedCreate", "FailedToCreate")):
            return f"pods that cannot be made: {message}"
    return ""


def troubles_of(pod: Mapping[str, Any]) -> Iterator[str]:
    """What went wrong in a pod, a sentence each."""
    name = pod["metadata"]["name"]
    for container in _containers(pod):
        for key in ("state", "lastState"):
            ended = (container.get(key) or {}).get("terminated") or {}
            if ended.get("reason") == "OOMKilled":
                limit = next(
                    (
                        spec.get("resources", {}).get("limits", {}).get("memory", "its limit")
                        for spec in pod["spec"]["containers"]
                        if spec["name"] == container["name"]
                    ),
                    "its limit",
                )
                yield f"Pod {name} was killed for using more than {limit} of memory; raise pods.worker_memory."
            elif ended.get("exitCode") and ended.get("reason") != "Completed":
                yield f"Pod {name}: {container['name']} ended with exit code {ended['exitCode']}."


def _containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _pull_error(pod: Mapping[str, Any], seen: Seen, waiting: Mapping[str, Any]) -> str:
    for event in reversed(seen.events):
        about, message = event.get("involvedObject", {}).get("name"), str(event.get("message"))
        # Beside it stand others of the same reason that only say "Error: ImagePullBackOff".
        if about == pod["metadata"]["name"] and event.get("reason") == "Failed" and not message.startswith("Error: "):
            return message
    return str(waiting.get("message") or waiting.get("reason"))
