"""ultralytics, kept from the network and from the user's home. Called before it is imported for the first time."""

import json
import os
import sys
from pathlib import Path

INTEGRATIONS = (
    "clearml",
    "comet",
    "dvc",
    "mlflow",
    "raytune",
    "sync",
    "tensorboard",
    "wandb",
    "vscode_msg",
    "openvino_msg",
)


def confine(folder: Path) -> None:
    """Set ultralytics up to work in one folder, silently, with every integration off.

    Args:
        folder: Receives its settings; all that it would put into the user's home goes there.
    """
    if "ultralytics" in sys.modules:
        return  # it reads its surroundings when it is imported
    settings = folder / "Ultralytics"
    settings.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "0",
        "YOLO_VERBOSE": "0",
        "ULTRALYTICS_SAFE_LOAD": "1",
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "MPLBACKEND": "Agg",
    }
    target, partial = settings / "settings.json", settings / f".settings-{os.getpid()}.json"
    partial.write_text(json.dumps(dict.fromkeys(INTEGRATIONS, False)))  # it adds its defaults for the rest
    partial.replace(target)
