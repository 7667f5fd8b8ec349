"""Somebody else's pipeline, of every component that there is: `theirs.py FOLDER|imported SOURCE PLATFORM CONFIG`.

With a folder, components come from their compiled files there, without a line of ours.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from kfp import components, dsl, local

ORIGIN, SOURCE, PLATFORM, CONFIG = sys.argv[1:]
SETTINGS = json.loads(CONFIG)


def component(name: str) -> Any:
    if ORIGIN == "imported":
        return getattr(importlib.import_module(f"kfp_flywheel.components.{name}.component"), name)
    return components.load_component_from_file(str(Path(ORIGIN, f"{name}.yaml")))


def of(name: str) -> dict[str, Any]:
    """What of the settings a component takes."""
    known = component(name).component_spec.inputs
    plain = {key for key, given in known.items() if not given.type.startswith("system.")}
    return {key: value for key, value in SETTINGS.items() if key in plain}


@dsl.pipeline(name="theirs")
def theirs(source: str = SOURCE, endpoint: str = "detector") -> None:
    run = {"run_id": "theirs", "platform": PLATFORM}
    told = component("notify")(pipeline="theirs", **run)
    with dsl.ExitHandler(told, name="steps"):
        start = component("resolve")(parameters="", endpoint=endpoint, **run)
        known = {"champion": start.outputs["champion"]}
        batch = component("ingest")(source=source, **run).after(start)
        clean = component("validate")(batch=batch.outputs["batch"], **of("validate"), **run)
        given = {"config": start.outputs["Output"]}
        data = component("snapshot")(clean=clean.outputs["clean"], **known, **given, **of("snapshot"), **run)
        dataset = {"dataset": data.outputs["dataset"]}
        package = {"package": component("train")(**dataset, **known, **of("train"), **run).outputs["package"]}
        judged = component("evaluate")(**package, **known, **dataset, **given, **of("evaluate"), **run)
        release = component("register")(**package, report=judged.outputs["report"], **run)
        served = component("rollout")(release=release.outputs["release"], **known, **given, **of("rollout"), **run)
        component("recall")(model="detector", version="", **run).after(served)
        pictures = str(Path(SOURCE).parent / "images" / "test")
        component("predict")(chosen=release.outputs["release"], images=pictures, **of("predict"), **run)
        component("monitor")(endpoint=endpoint, **run).after(served)


if __name__ == "__main__":
    local.init(local.SubprocessRunner(use_venv=False))
    theirs()
