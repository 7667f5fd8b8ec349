"""The training curve in MLflow, while it grows. One MLflow run a job, found again by whoever continues the job."""

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Self

from ..runtime.artifacts import Epoch
from ..runtime.errors import PlatformError
from ..runtime.wiring import connect
from .spec import TrainSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "flywheel-train"
JOB_TAG = "flywheel.job"
LAST_TRY_S = 30.0


class Tracker:
    """The MLflow run of one job.

    MLflow away at the start is an error, before anything is paid for. Away later, epochs wait here and are sent when it
    is back; if it never is, the curve still stands in the package, and a line says what MLflow lacks.
    """

    def __init__(self, client: "MlflowClient", run: str, say: Callable[[str], None]) -> None:
        self._client, self.run, self._say = client, run, say
        self._waiting: list[Epoch] = []
        self._sent: set[int] = set()
        self._away = False

    @classmethod
    def open(cls, spec: TrainSpec, say: Callable[[str], None]) -> Self:
        """Create the job's run, or find it.

        Raises:
            PlatformError: MLflow cannot be reached.
        """
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # hours of training are worth some patience
        client = connect(spec.platform).mlflow
        from mlflow.entities import Param, RunTag
        from mlflow.exceptions import MlflowException

        tags = {
            JOB_TAG: spec.name,
            "flywheel.dataset": spec.dataset.id,
            "flywheel.code": spec.lineage.code,
            "flywheel.image": spec.lineage.image,
            "flywheel.run": spec.lineage.run,
            "flywheel.parents": " ".join(spec.lineage.parents),
            "mlflow.runName": spec.name,
        }
        try:
            experiment = _experiment(client, f"{spec.platform.store}/mlflow")
            found = client.search_runs([experiment], f"tags.`{JOB_TAG}` = '{spec.name}'", max_results=1)
            if found:
                run = found[0].info.run_id
                client.update_run(run, status="RUNNING")
            else:
                run = client.create_run(experiment, tags=tags).info.run_id
                params = {name: str(value) for name, value in spec.config.plain().items()}
                params |= {f"{split}_images": str(count) for split, count in spec.dataset.counts.items()}
                params["classes"] = str(len(spec.dataset.names))
                client.log_batch(run, params=[Param(name, value) for name, value in params.items()])
            client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])
            tracker = cls(client, run, say)
            tracker._sent = {metric.step for metric in client.get_metric_history(run, "map50")}
        except (MlflowException, OSError) as error:
            raise PlatformError(
                f"MLflow at {spec.platform.tracking} cannot be used: {_first_line(error)}",
                "start it, or correct tracking in the platform file",
            ) from error
        return tracker

    def log(self, epochs: Sequence[Epoch]) -> None:
        """Send epochs that MLflow has not got yet; what cannot be sent now waits."""
        known = self._sent | {epoch.epoch for epoch in self._waiting}
        self._waiting += [epoch for epoch in epochs if epoch.epoch not in known]
        self._send()

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Send what waits and end the run; after some seconds without MLflow, say what it lacks."""
        from mlflow.exceptions import MlflowException

        deadline = time.monotonic() + LAST_TRY_S
        while True:
            self._send()
            try:
                if not self._waiting:
                    self._client.set_terminated(self.run, status=status)
                    return
            except (MlflowException, OSError) as error:
                reason = _first_line(error)
            else:
                reason = f"{len(self._waiting)} epochs could not be sent"
            if time.monotonic() > deadline or status == "KILLED":
                self._say(f"MLflow run {self.run} stays incomplete: {reason}; the whole curve is in the package")
                return
            time.sleep(1)

    def _send(self) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, epoch.epoch)
            for epoch in self._waiting
            for name, value in {**epoch.metrics, "seconds": epoch.seconds}.items()
        ]
        try:
            for start in range(0, len(metrics), 1000):  # MLflow's limit
                self._client.log_batch(self.run, metrics=metrics[start : start + 1000])
        except (MlflowException, OSError) as error:
            if not self._away:
                self._say(f"MLflow is away; training goes on, and the curve is sent later: {_first_line(error)}")
            self._away = True
            return
        if self._away:
            self._say(f"MLflow answers again; {len(self._waiting)} epochs were sent")
        self._sent |= {epoch.epoch for epoch in self._waiting}
        self._waiting, self._away = [], False


def _experiment(client: "MlflowClient", artifacts: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    return str(found.experiment_id)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
