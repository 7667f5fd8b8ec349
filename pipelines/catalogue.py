"""Every pipeline and every component that there is, found in the folders: nothing is registered by hand.

`python -m kfp_flywheel.pipelines.catalogue PIPELINE` reads a platform and prints the pipeline's YAML: where KFP cannot
compile, as in a step, a program of its own can.
"""

import re
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.python_component import PythonComponent

from ..components.runtime import images
from ..components.runtime.config import Platform
from . import catalogue_page, settings

HERE = Path(__file__).parent
RECONCILER = "reconciler.yaml"


def pipelines() -> dict[str, GraphComponent]:
    """Pipelines by name: the modules beside this one that hold a `@dsl.pipeline` of their own name."""
    names = [path.stem for path in sorted(HERE.glob("*.py")) if "\n@dsl.pipeline(name=" in path.read_text()]
    return {name: pipeline(name) for name in names}


def pipeline(name: str) -> GraphComponent:
    """A pipeline by its name."""
    found = getattr(import_module(f"{__package__}.{name}"), name)
    assert isinstance(found, GraphComponent)
    return found


def components() -> dict[str, BaseComponent]:
    """Components by name: each `components/<stage>/component.py`."""
    root = f"{__package__}".rpartition(".")[0] + ".components"
    return {name: getattr(import_module(f"{root}.{name}.component"), name) for name in stages()}


def stages() -> list[str]:
    """Names of all components."""
    return sorted(path.parent.name for path in (HERE.parent / "components").glob("*/component.py"))


def compiled(component: BaseComponent, platform: Platform) -> str:
    """The YAML of a pipeline or component, with a platform's images, URIs and settings in it.

    Raises:
        UserError: The platform has settings of a stage that there is not.
    """
    settings.checked(platform, stages())
    with tempfile.TemporaryDirectory(prefix="flywheel-compile-") as folder:
        path = Path(folder, "compiled.yaml")
        compiler.Compiler().compile(component, str(path))
        spec = next(yaml.safe_load_all(path.read_text()))
    _fill_in(spec, platform, isinstance(component, PythonComponent))
    pods = {executor: settings.pod(_stage(executor), platform) for executor in spec["deploymentSpec"]["executors"]}
    documents = [spec]
    if any(pods.values()):
        documents.append({"platforms": {"kubernetes": {"deploymentSpec": {"executors": pods}}}})
    return str(yaml.safe_dump_all(documents, sort_keys=False, width=120))


def compile_components(platform: Platform, folder: Path) -> list[Path]:
    """Compile every component to YAML, and write the page that tells of them.

    Args:
        folder: Receives `<stage>.yaml` and `index.html`.
    """
    written, told = [], {}
    for name, component in components().items():
        text = compiled(component, platform)
        written.append(_write(folder / f"{name}.yaml", text))
        (executor,) = yaml.safe_load(text.partition("\n---\n")[0])["deploymentSpec"]["executors"].values()
        told[name] = component, executor["container"]["image"]
    return [*written, _write(folder / "index.html", catalogue_page.render(told, platform.pods.secrets))]


def compile_all(platform: Platform, folder: Path) -> list[Path]:
    """Compile every pipeline and every component to YAML.

    Args:
        folder: Receives `<pipeline>.yaml`, the folder `components`, and for a cluster `reconciler.yaml`.
    """
    written = [_write(folder / f"{name}.yaml", compiled(found, platform)) for name, found in pipelines().items()]
    written += compile_components(platform, folder / "components")
    if platform.serving_namespace:
        from ..components.runtime.adapters.kserve.reconciler import deployment

        written.append(_write(folder / RECONCILER, yaml.safe_dump(deployment(platform), sort_keys=False, width=120)))
    return written


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _fill_in(spec: dict[str, Any], platform: Platform, alone: bool) -> None:
    """Set the platform as the default, its images in place of the released ones, and what pods are to have."""
    # In the components too: whoever loads one from its file gets their defaults, not the root's.
    for part in (spec["root"], *spec["components"].values()):
        inputs = part.get("inputDefinitions", {}).get("parameters", {})
        if "platform" in inputs:
            inputs["platform"] |= {"defaultValue": platform.line(), "isOptional": True}
    released = {getattr(images, profile.upper()): name for profile, name in platform.images.items()}
    for executor, made in spec["deploymentSpec"]["executors"].items():
        container = made.get("container", {})
        container["image"] = released.get(container.get("image"), container.get("image"))
        given = platform.pods.env.items()
        if given and alone:  # the SDK cannot compile a component again that it loaded with `env`
            container["command"] = ["env", *(f"{name}={value}" for name, value in given), *container["command"]]
        elif given:
            container["env"] = [{"name": name, "value": value} for name, value in given]
        if asked := settings.resources(_stage(executor), platform):
            container["resources"] = asked


def _stage(executor: str) -> str:
    """The stage that an executor is of: KFP numbers those of a stage that is used twice."""
    return re.sub(r"-[0-9]+$", "", executor.removeprefix("exec-")).replace("-", "_")


if __name__ == "__main__":
    print(compiled(pipeline(sys.argv[1]), Platform.parse(sys.stdin.read())), end="")
