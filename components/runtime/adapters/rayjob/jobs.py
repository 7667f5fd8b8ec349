"""RayJobs: submitted once, followed to their end, adopted by whoever comes again."""

import datetime
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import urllib3
from kubernetes import client

from ...config import Pods
from ...errors import Conflict, JobFailed, PlatformError
from ...lines import MARK
from ...ports import JobSpec
from .. import kubernetes
from ..kubernetes import Objects, explained, message_of, patiently
from .build import RAYJOB, SPEC_HASH, build, name_of
from .reasons import Seen, failure, hopeless, state_of, waits_for, worth_another_try

TICK_S = 3
"""Seconds between looks at a job's pods while nothing changes."""
ATTEMPTS = 3
KEPT_LINES = 200
"""Lines that a job's error is looked for in."""
TERMINATED = 128 + signal.SIGTERM


class RayJobs:
    """Jobs of one namespace.

    Args:
        namespace: Where RayJobs are made.
        pods: Settings of their pods.
    """

    def __init__(self, namespace: str, pods: Pods) -> None:
        self.namespace, self.pods = namespace, pods
        self._client = kubernetes.connect()
        self._objects, self._core = Objects(self._client, namespace), client.CoreV1Api(self._client)
        self._submitted: dict[str, dict[str, Any]] = {}

    def submit(self, spec: JobSpec) -> None:
        name = name_of(spec)
        wanted = build(spec, self.namespace, self.pods, kubernetes.owner(self._client, self.namespace))
        with explained(f"job {name} could not be submitted to {self.namespace}"):
            self._create(name, wanted)
        self._submitted[spec.name] = wanted

    def wait(self, name: str, on_line: Callable[[str], None]) -> None:
        wanted = self._submitted[name]
        job = wanted["metadata"]["name"]
        with _terminated_means(lambda: self.cancel(name)), explained(f"job {job} cannot be followed"):
            for attempt in range(1, ATTEMPTS + 1):
                seen = self._to_its_end(job, on_line)
                if state_of(seen.status) == "succeeded":
                    self._objects.delete(RAYJOB, job)  # its lines were handed on; a failed one stays to be looked at
                    return
                if attempt == ATTEMPTS or not worth_another_try(seen.status):
                    raise failure(job, self.namespace, seen)
                on_line(f"{MARK}job {job}: {seen.status['reason']}, which nobody is to blame for: another try")
                self._delete_and_wait(job)
                self._create(job, wanted)

    def cancel(self, name: str) -> None:
        wanted = self._submitted.get(name)
        if wanted:
            with explained(f"job {name} could not be deleted"):
                self._objects.delete(RAYJOB, wanted["metadata"]["name"])

    def _create(self, name: str, wanted: dict[str, Any]) -> None:
        """Create the object or adopt the one that is there; one that ended badly makes room for a new start."""
        while not self._objects.create(RAYJOB, wanted):
            found = self._objects.get(RAYJOB, name)
            if found is None or found["metadata"].get("deletionTimestamp"):
                time.sleep(0.2)
                continue
            theirs = found["metadata"].get("annotations", {}).get(SPEC_HASH)
            ours = wanted["metadata"]["annotations"][SPEC_HASH]
            if theirs != ours:
                raise Conflict(
                    f"RayJob {name} in {self.namespace} is of specification {theirs}, not {ours}.",
                    f"kubectl -n {self.namespace} delete rayjob {name}, if nobody needs it",
                )
            if state_of(found.get("status", {})) != "failed":
                return
            self._delete_and_wait(name)

    def _delete_and_wait(self, name: str) -> None:
        self._objects.delete(RAYJOB, name)
        for found in self._objects.follow(RAYJOB, name, TICK_S):
            if found is None:
                return

    def _to_its_end(self, name: str, on_line: Callable[[str], None]) -> Seen:
        """Follow a job until it has ended, or never will begin."""
        lines: deque[str] = deque(maxlen=KEPT_LINES)

        def heard(line: str) -> None:
            lines.append(line)
            on_line(line)

        log = _Log(self._core, self.namespace, name, heard)
        told, since = "", time.monotonic()
        try:
            for found in self._objects.follow(RAYJOB, name, TICK_S):
                if found is None:
                    raise JobFailed(f"RayJob {name} was deleted while it was at work.", "run the same command again")
                status = found.get("status", {})
                state = state_of(status)
                if state in ("succeeded", "failed"):
                    log.finish()
                    return self._seen(name, status, lines) if state == "failed" else Seen(status)
                if state == "running":
                    log.start()
                    continue
                seen = self._seen(name, status, lines)
                if never := hopeless(name, self.namespace, seen):
                    self._objects.delete(RAYJOB, name)
                    raise never
                reason = waits_for(seen)
                if reason and reason != told:
                    on_line(f"{MARK}job {name} waits for {reason}")
                told = reason
                if reason and self.pods.wait_s and time.monotonic() - since > self.pods.wait_s:
                    self._objects.delete(RAYJOB, name)
                    raise PlatformError(
                        f"job {name} waited for {self.pods.wait_s:g} s for {reason}",
                        "give the cluster such nodes, ask for less, or raise pods.wait_s (0 is without end)",
                    )
        finally:
            log.stop()
        raise AssertionError("follow ends with None")

    def _seen(self, name: str, status: dict[str, Any], lines: deque[str]) -> Seen:
        """The job's pods and their events, beside its status."""
        ray = status.get("rayClusterName", "")
        pods = [
            self._client.sanitize_for_serialization(pod)
            for selector in (f"ray.io/cluster={ray}", f"job-name={name}")
            for pod in patiently(partial(self._core.list_namespaced_pod, self.namespace, label_selector=selector)).items
        ]
        names = {name, ray, *(pod["metadata"]["name"] for pod in pods)}
        happened = patiently(
            lambda: self._core.list_namespaced_event(self.namespace, field_selector="type=Warning").items
        )
        events = [self._client.sanitize_for_serialization(event) for event in happened]
        about = [event for event in events if event["involvedObject"].get("name") in names]
        return Seen(status, pods, about, tuple(lines))


class _Log:
    """What a job's submitter prints, line by line in a thread; a broken stream is taken up again where it broke."""

    def __init__(self, core: client.CoreV1Api, namespace: str, name: str, on_line: Callable[[str], None]) -> None:
        self._core, self._namespace, self._name, self._on_line = core, namespace, name, on_line
        self._thread: threading.Thread | None = None
        self._over, self._ended = threading.Event(), threading.Event()
        self._last = ""

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()

    def finish(self, seconds: float = 10.0) -> None:
        """The job has ended: read what is still to be read."""
        self._over.set()
        self.start()
        assert self._thread is not None
        self._thread.join(seconds)

    def stop(self) -> None:
        self._over.set()
        self._ended.set()

    def _follow(self) -> None:
        while not self._ended.is_set():
            over = self._over.is_set()
            try:
                self._read()
                if over:
                    return
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                if getattr(error, "status", None) == 403:
                    self._on_line(f"{MARK}job {self._name}: its lines cannot be read: {message_of(error)}")
                    return
                # otherwise taken up again below
            (self._ended if over else self._over).wait(0.5)

    def _read(self) -> None:
        pods = self._core.list_namespaced_pod(self._namespace, label_selector=f"job-name={self._name}").items
        for pod in sorted(pods, key=lambda pod: pod.metadata.creation_timestamp):
            if pod.status.phase == "Pending":
                continue
            answer = self._core.read_namespaced_pod_log(
                pod.metadata.name,
                self._namespace,
                follow=True,
                timestamps=True,
                _preload_content=False,
                **self._since(),
            )
            for line in _lines(answer):
                stamp, _, text = line.partition(" ")
                if stamp > self._last:  # `since` is of whole seconds, so some lines come again
                    self._last = stamp
                    self._on_line(text)
                if self._ended.is_set():
                    return

    def _since(self) -> dict[str, int]:
        if not self._last:
            return {}
        last = datetime.datetime.fromisoformat(self._last[:19] + "+00:00").timestamp()
        return {"since_seconds": max(int(time.time() - last) + 2, 1)}


def _lines(answer: urllib3.HTTPResponse) -> Iterator[str]:
    rest = b""
    for chunk in answer.stream():
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


@contextmanager
def _terminated_means(cancel: Callable[[], None]) -> Iterator[None]:
    """Asked to end, a step has a few tenths of a second: first the job is deleted, then the step ends with 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        cancel()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
