"""`python -m … PLATFORM`: set MLflow's alias `champion` of the models on standard input, `{"model": "version"}`."""

import json
import sys

from ..runtime.config import Platform
from ..runtime.wiring import connect


def main() -> None:
    registry = connect(Platform.parse(sys.argv[1])).mlflow
    for model, version in json.load(sys.stdin).items():
        if registry.get_registered_model(model).aliases.get("champion") != version:
            registry.set_registered_model_alias(model, "champion", version)


if __name__ == "__main__":
    main()
