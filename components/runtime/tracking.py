"""The gate's numbers in MLflow, beside the training curve.

MLflow takes seconds to import, so whoever needs it anyway does it: register for what passed, evaluate for the rest.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .artifacts import EvalReport, Scores

if TYPE_CHECKING:
    from mlflow import MlflowClient


def metrics_of(scores: Scores) -> dict[str, float]:
    """The challenger's numbers as a tracking server wants them: none that is missing."""
    values = {"map50": scores.map50, "map50_95": scores.map, "latency_ms": scores.latency_ms, "size_mb": scores.size_mb}
    return {f"holdout/{name}": value for name, value in values.items() if value is not None}


def track_report(open_client: Callable[[], "MlflowClient"], run: str, report: EvalReport) -> str:
    """Log a report's numbers and decision to the training run.

    Nothing depends on it, so what goes wrong is a sentence and no error.

    Args:
        open_client: Opens MLflow; not called if there is no run.
        run: Id of the training run, or empty.

    Returns:
        What a person should know; empty if all is well.
    """
    if not run:
        return ""
    try:
        client = open_client()
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        values = [Metric(name, value, now, 0) for name, value in metrics_of(report.challenger_scores).items()]
        client.log_batch(run, metrics=values, tags=[RunTag("flywheel.decision", report.decision)])
    except Exception as error:  # whatever a tracking server's client raises: MLflow's, SQLAlchemy's, the network's
        what = str(error).partition("\n")[0] or type(error).__name__
        return f" The metrics could not be logged to MLflow: {what}"
    return ""
