"""MLflow, for the tracking of training and as the registry of models: quiet, soon tired, and never calling home."""

import logging
import os
from typing import TYPE_CHECKING

from ..errors import PlatformError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def open_mlflow(tracking: str) -> "MlflowClient":
    """Open MLflow at a tracking URI; the registry is at the same place. Importing it takes seconds.

    Nothing is asked of the server yet, but a missing SQLite schema is created.

    Raises:
        PlatformError: The SQLite file cannot be made or read.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own defaults are to try for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return MlflowClient(tracking_uri=tracking, registry_uri=tracking)
    except (MlflowException, OSError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise PlatformError(
            f"MLflow at {tracking} cannot be used: {what}", "start it, or correct tracking in the platform file"
        ) from error
