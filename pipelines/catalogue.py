"""Every pipeline and every component that there is, found in the folders: nothing is registered by hand."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.graph_component import GraphComponent

from ..components.runtime import images
from ..components.runtime.config import Platform

HERE = Path(__file__).parent


def pipelines() -> dict[str, GraphComponent]:
    """Pipelines by name: the modules beside this one that hold a `@dsl.pipeline` of their own name."""
    found: dict[str, GraphComponent] = {}
    for path in sorted(HERE.glob("*.py")):
        if f"\ndef {path.stem}(" in path.read_text():
            pipeline = getattr(import_module(f"{__package__}.{path.stem}"), path.stem)
            if isinstance(pipeline, GraphComponent):
                found[path.stem] = pipeline
    return found


def components() -> dict[str, BaseComponent]:
    """Components by name: each `components/<stage>/component.py`."""
    root = f"{__package__}".rpartition(".")[0] + ".components"
    folder = Path(str(import_module(root).__file__)).parent
    names = sorted(path.parent.name for path in folder.glob("*/component.py"))
    return {name: getattr(import_module(f"{root}.{name}.component"), name) for name in names}


def compile_all(platform: Platform, folder: Path) -> list[Path]:
    """Compile every pipeline and every component to YAML, with a platform's images and URIs as defaults.

    Args:
        platform: What the parameter `platform` is filled with.
        folder: Receives `<pipeline>.yaml`, `components/<stage>.yaml`, and for a cluster `reconciler.yaml`.
    """
    written = []
    for part, found in (("", pipelines()), ("components", components())):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, component in found.items():
            path = folder / part / f"{name}.yaml"
            compiler.Compiler().compile(component, str(path))
            documents = list(yaml.safe_load_all(path.read_text()))
            _fill_in(documents[0], platform)
            if platform.pods.secrets:
                documents[1:] = [_secrets_of(documents[0], platform)]
            path.write_text(yaml.safe_dump_all(documents, sort_keys=False, width=120))
            written.append(path)
    if platform.serving.startswith("kserve://"):
        from ..components.runtime.adapters.kserve.reconciler import deployment

        path = folder / "reconciler.yaml"
        path.write_text(yaml.safe_dump(deployment(platform), sort_keys=False, width=120))
        written.append(path)
    return written


def _fill_in(spec: dict[str, Any], platform: Platform) -> None:
    """Set the platform as the default, its images in place of the released ones, and the environment of its pods."""
    # In the components too: whoever loads one from its file gets their defaults, not the root's.
    for part in (spec["root"], *spec["components"].values()):
        inputs = part.get("inputDefinitions", {}).get("parameters", {})
        if "platform" in inputs:
            inputs["platform"] |= {"defaultValue": platform.line(), "isOptional": True}
    released = {getattr(images, profile.upper()): name for profile, name in platform.images.items()}
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor.get("container", {})
        container["image"] = released.get(container.get("image"), container.get("image"))
        if platform.pods.env:
            container["env"] = [{"name": name, "value": value} for name, value in platform.pods.env.items()]


def _secrets_of(spec: dict[str, Any], platform: Platform) -> dict[str, Any]:
    """KFP's second document: which secrets become environment variables of the steps, by name."""
    secrets = platform.pods.secrets.items()
    executors = {
        executor: {"secretAsEnv": [_as_environment(name, keys) for name, keys in secrets]}
        for executor in spec["deploymentSpec"]["executors"]
    }
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def _as_environment(secret: str, keys: Iterable[str]) -> dict[str, Any]:
    return {
        "secretName": secret,
        "secretNameParameter": {"runtimeValue": {"constant": secret}},
        "keyToEnv": [{"secretKey": key, "envVar": key} for key in keys],
    }
