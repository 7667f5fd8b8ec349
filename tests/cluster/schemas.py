"""JSON schemas of what an API server knows, for kubeconform: none is fetched from anywhere."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .control import ControlPlane

PLACE = "{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json"
LOOSE = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["string", "integer"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "number"]},
}
"""What the OpenAPI of Kubernetes calls a string."""
REFERENCE = re.compile(r'"#/definitions/([^"]+)"')


def write(plane: ControlPlane, folder: Path, objects: Iterable[dict[str, Any]]) -> str:
    """Write those of the kinds of some objects into a folder; gives where kubeconform finds them."""
    definitions = json.loads(plane.kubectl("get", "--raw", "/openapi/v2"))["definitions"] | LOOSE
    kinds = {(one["apiVersion"], one["kind"]) for one in objects}
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            group, version = kind["group"], kind["version"]
            if (f"{group}/{version}".lstrip("/"), kind["kind"]) in kinds:
                path = folder / f"{kind['kind'].lower()}-{group or version}-{version}.json"
                path.write_text(json.dumps(_whole(definitions, name)))
    return f"{folder}/{PLACE}"


def _whole(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """A definition with all that it refers to."""
    found, open = dict[str, Any](), {name}
    while open:
        one = open.pop()
        found[one] = _strict(definitions[one])
        open |= set(REFERENCE.findall(json.dumps(definitions[one]))) - found.keys()
    return {"$ref": f"#/definitions/{name}", "definitions": found}


def _strict(schema: Any) -> Any:
    """Nothing beside what is named, as the API server has it when it is asked to be strict."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
