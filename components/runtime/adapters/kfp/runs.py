"""Runs on Kubeflow Pipelines: started once by name, of the very pipelines of this code."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import kfp_server_api as api

from ...compiling import begun
from ...config import Platform
from ...errors import AlreadyExists
from ...ports import RunRequest, RunState, Store, Task
from ..names import checked
from .argo import pods_of
from .server import Server, explained

if TYPE_CHECKING:
    from .pods import Pods

State = Literal["waiting", "running", "succeeded", "failed", "skipped", "cancelled"]
STATES: dict[str | None, State] = {
    "RUNNING": "running",
    "PAUSED": "running",
    "CANCELING": "running",
    "SUCCEEDED": "succeeded",
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "CANCELED": "cancelled",
}
"""KFP's states; what is not here waits."""
OVER = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
ENDING = ("CANCELING", *OVER)
NO_LOG = '{"error_message"'
"""Begins what KFP answers, with 200, when it has no log."""
USUAL_S = 10.0
"""Seconds in which a pod begins."""


class KfpRuns:
    """Runs of one API server.

    Args:
        platform: Its `runs` says where; pipelines are compiled for it.
        open_store: Opens the store, which decides between two who start a run of one name at once.
    """

    def __init__(self, platform: Platform, open_store: Callable[[], Store]) -> None:
        self._platform, self._open_store = platform, open_store
        self._printed: dict[str, str] = {}

    @cached_property
    def _pods(self) -> "Pods":
        from .pods import Pods  # Kubernetes' client takes half a second, which only a look at steps is worth

        return Pods(self._platform.steps_namespace)

    @cached_property
    def store(self) -> Store:
        return self._open_store()

    @cached_property
    def server(self) -> Server:
        return Server(self._platform.runs)

    def start(self, request: RunRequest) -> bool:
        compiling = begun(request.pipeline, self._platform.line())  # takes longest: the server is asked meanwhile
        if self._named(checked(request.name)):
            return False
        _ = self.store
        reference = self.server.upload(request.pipeline, compiling.result())
        wanted = api.V2beta1Run(
            experiment_id=self.server.experiment,
            display_name=request.name,
            description=request.reason,
            pipeline_version_reference=reference,
            runtime_config=api.V2beta1RuntimeConfig(parameters=dict(request.parameters)),
        )
        with explained(f"run {request.name} cannot be started"):
            made: str = self.server.runs.run_service_create_run(wanted).run_id
            if self._claimed(request.name, made) == made:
                return True
            self.server.runs.run_service_delete_run(made)  # somebody else was first
        return False

    def find(self, name: str) -> RunState | None:
        with explained(f"run {name} cannot be read"):
            found = self._by_id(name) or next(iter(self._named(checked(name))), None)
            return found and self._state(found)

    def tasks(self, state: RunState) -> "list[Task]":
        with explained(f"the steps of {state.request.name} cannot be read"):
            run = self.server.runs.run_service_get_run(state.run)
            details = run.run_details.task_details if run.run_details else None
            return [self._task(state.run, *found) for found in pods_of(details or ())]

    def cancel(self, state: RunState) -> None:
        with explained(f"run {state.request.name} cannot be ended"):
            if self.server.runs.run_service_get_run(state.run).state in ENDING:
                return
            try:
                self.server.runs.run_service_terminate_run(state.run)
            except api.ApiException:
                if self.server.runs.run_service_get_run(state.run).state not in ENDING:  # meanwhile
                    raise

    def _by_id(self, name: str) -> api.V2beta1Run | None:
        try:
            found: api.V2beta1Run = self.server.runs.run_service_get_run(str(uuid.UUID(name)))
        except ValueError:
            return None
        except api.ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def _named(self, name: str) -> list[api.V2beta1Run]:
        """Runs of this name, the one that counts first."""
        with explained(f"run {name} cannot be looked for"):
            found = list(self.server.our_runs(display_name=name))
        if len(found) < 2:
            return found
        counts = self._claimed(name, min(found, key=lambda run: (run.created_at, run.run_id)).run_id)
        return sorted(found, key=lambda run: run.run_id != counts)

    def _claimed(self, name: str, run: str) -> str:
        """Id of the run that this name stands for: whoever writes it down first decides."""
        key = f"started/{name}"
        try:
            self.store.put(key, run.encode())
        except AlreadyExists:
            return self.store.get(f"{self.store.root}/{key}").decode()
        return run

    def _task(self, run: str, name: str, pod: str, detail: Any) -> Task:
        state = STATES.get(detail.state, "waiting")
        seconds, over = _seconds(detail.start_time, detail.end_time), state not in ("waiting", "running")
        printed = self._log(run, pod, over)
        waits_for = "" if over or printed or seconds < USUAL_S else self._pods.wait_for(pod)
        return Task(name=name, state=state, seconds=seconds, printed=printed, waits_for=waits_for)

    def _log(self, run: str, pod: str, over: bool) -> str:
        """What a pod has printed; empty as long as nobody has a log of it."""
        if pod in self._printed:
            return self._printed[pod]
        text = None if over else self._pods.printed(pod)
        if text is None:
            text = self.server.text(f"/apis/v1alpha1/runs/{run}/nodes/{pod}/log")
            text = "" if text.startswith(NO_LOG) else text
        if over:
            self._printed[pod] = text
        return text

    def _state(self, run: api.V2beta1Run) -> RunState:
        pipeline, parameters = self.server.asked_for(run)
        state = STATES.get(run.state, "waiting")
        return RunState(
            request=RunRequest(
                name=run.display_name,
                pipeline=pipeline,
                parameters=parameters,
                reason=run.description or "",
                at=run.created_at.timestamp(),
            ),
            state="succeeded" if state == "skipped" else state,
            run=run.run_id,
            reason=run.error.message if run.error and run.error.message else "",
            seconds=_seconds(run.created_at, run.finished_at),
            url=f"{self.server.ui}/#/runs/details/{run.run_id}",
        )

    def list(self, limit: int) -> "list[RunState]":
        with explained("the runs cannot be listed"):
            return [self._state(run) for run in islice(self.server.our_runs(), limit)]


def _seconds(start: datetime, end: datetime | None) -> float:
    # Without an end, KFP says 1970.
    over = end is not None and end.year > 1970
    return max(((end if end and over else datetime.now(UTC)) - start).total_seconds(), 0.0)
