"""`python -m … PLATFORM CHAMPIONS`: set MLflow's alias `champion` of each model, `{"model": "version"}`."""

import json
import sys

from ..runtime.config import Platform
from ..runtime.wiring import connect


def main() -> None:
    registry = connect(Platform.parse(sys.argv[1])).mlflow
    for model, version in json.loads(sys.argv[2]).items():
        if str(registry.get_registered_model(model).aliases.get("champion")) != version:  # SQLite gives a number
            registry.set_registered_model_alias(model, "champion", version)


if __name__ == "__main__":
    main()
