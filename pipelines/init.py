"""`flywheel init`: a platform file to begin with. What is to be filled in stands in angle brackets."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..components.runtime.config import REQUIRED, Gateway, Parameter, Platform, Pods, Section, parameters_of
from ..components.runtime.errors import UserError
from .platforms import OPEN

NAMESPACE = "flywheel"
"""That of the overlays in manifests/overlays."""
_CLUSTER: dict[str, Any] = {
    "jobs": f"rayjob://{NAMESPACE}",
    "serving": f"kserve://{NAMESPACE}",
    "tracking": "<address of MLflow>",
    "telemetry": "prometheus+http://prometheus-operated.monitoring:9090",
    "notify": ["log://"],
    "images": "build/images.yaml",
    "gateway": {"address": "http://<address of the gateway>", "name": f"{NAMESPACE}/flywheel"},
    "pods": {"service_account": "flywheel"},
}
_HERE = _CLUSTER | {
    "tracking": f"http://mlflow.{NAMESPACE}:5000",
    "pods": {
        "service_account": "flywheel",
        "env": {"AWS_ENDPOINT_URL": f"http://store.{NAMESPACE}:8333", "AWS_DEFAULT_REGION": "us-east-1"},
        "secrets": {"store": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]},
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "kind": {"store": "s3://flywheel"} | _HERE,
    "gke": {"store": "gs://<bucket>/flywheel"} | _CLUSTER,
    "eks": {"store": "s3://<bucket>/flywheel"}
    | _CLUSTER
    | {"pods": {"service_account": "flywheel", "env": {"AWS_DEFAULT_REGION": "<region>"}}},
}
INNER: dict[str, type[Section]] = {"gateway": Gateway, "pods": Pods}
HEAD = """\
# The platform of flywheel COMMAND --platform {file}, as manifests/overlays/{kind} installs it.
# {fill}What begins with # is a default.
"""
FILL = "Fill in what stands in <angle brackets>. "


def init(kind: str, file: Path, force: bool) -> dict[str, Any]:
    """Write a platform file for a kind of cluster.

    Returns:
        `file`, and `fill_in`: what a person has to fill in.

    Raises:
        UserError: There is none for this kind, or there is a file already.
    """
    if kind not in KINDS:
        raise UserError(f"--platform {kind} is none of {', '.join(KINDS)}.", "flywheel init --platform gke")
    text = written(kind, file)
    try:
        with file.open("w" if force else "x") as out:
            out.write(text)
    except FileExistsError as error:
        raise UserError(f"{file} is there already.", f"flywheel init --platform {kind} --force, or --out") from error
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}.", "--out cluster.yaml") from error
    return {
        "file": str(file),
        "fill_in": [line.strip() for line in text.splitlines() if OPEN.search(line) and "#" not in line],
    }


def written(kind: str, file: Path) -> str:
    """The text of a platform file: every setting with its description, those of this kind of cluster first."""
    given = KINDS[kind]
    lines = [HEAD.format(file=file, kind=kind, fill=FILL if "<" in str(given) else "")]
    for parameter in sorted(parameters_of(Platform), key=lambda one: one.name not in given):
        section = INNER.get(parameter.name)
        if section is None:
            lines += _setting(parameter, given, Platform, "")
        else:
            lines += [f"\n# {parameter.description}", f"{parameter.name}:"]
            inner = given[parameter.name]
            for one in sorted(parameters_of(section), key=lambda one: one.name not in inner):
                lines += _setting(one, inner, section, "  ")
    return "\n".join(lines) + "\n"


def _setting(parameter: Parameter, given: Mapping[str, Any], section: type[Section], indent: str) -> Iterator[str]:
    """A setting below its description; with # before it where it is the default."""
    name = parameter.name
    value = given[name] if name in given else _default(section, name)
    yield f"{indent}# {parameter.description}"
    yield f"{indent}{'' if name in given else '# '}{name}: {_yaml(value)}"


def _default(section: type[Section], name: str) -> Any:
    (field,) = [one for one in msgspec.structs.fields(section) if one.name == name]
    return field.default_factory() if field.default is REQUIRED else field.default


def _yaml(value: object) -> str:
    """On one line: JSON is YAML."""
    return value if isinstance(value, str) and value.strip("-") else json.dumps(msgspec.to_builtins(value))


def show(found: dict[str, Any]) -> None:
    """Print what was written."""
    print(f"{found['file']} is written" + (", but for:" if found["fill_in"] else "."))
    for line in found["fill_in"]:
        print(f"  {line}")
