"""MLflow, for the tracking of training and as the registry of models: quiet, soon tired, and never calling home."""

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


def open_mlflow(tracking: str) -> "MlflowClient":
    """Open MLflow at a tracking URI; the registry is at the same place. Importing it takes seconds.

    Nothing is asked of the server yet, but a missing SQLite schema is created.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own defaults are to try for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking, registry_uri=tracking)
