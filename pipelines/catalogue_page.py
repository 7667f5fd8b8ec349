"""The page of `flywheel compile --components DIR`: what each component takes and gives, its image, and its source."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kfp.dsl.base_component import BaseComponent

from ..components.runtime.page import page

TYPES = {"STRING": "str", "NUMBER_INTEGER": "int", "NUMBER_DOUBLE": "float", "BOOLEAN": "bool"}
FOR_ALL = {
    "platform": "Where to work, as one JSON text; it is filled in in these files",
    "run_id": "Groups the records of one run: dsl.PIPELINE_JOB_ID_PLACEHOLDER",
}


def render(components: Mapping[str, tuple[BaseComponent, str]], secrets: Mapping[str, Sequence[str]]) -> str:
    """Render the page.

    Args:
        components: By name, each with its image.
        secrets: Their keys, by name: what the SDK drops of a component that it loads.
    """
    links = " · ".join(f'<a href="#{name}">{name}</a>' for name in components)
    intro = (
        "<p>Each file beside this page is a component by itself: "
        "<code>kfp.components.load_component_from_file('train.yaml')</code>. Where the package is installed, "
        "<code>from kfp_flywheel.components.train.component import train</code> is the same.</p>"
    )
    if secrets:
        lines = [
            f"kubernetes.use_secret_as_env(task, {name!r}, { ({key: key for key in keys})!r})"
            for name, keys in secrets.items()
        ]
        code = escape("\n".join(["from kfp import kubernetes", *lines]))
        intro += (
            f"<p>The SDK drops the secrets of a component that it loads. Give them to its tasks:</p><pre>{code}</pre>"
        )
    return page(
        "Components", f"{intro}<p>{links}</p>" + "".join(_section(n, *found) for n, found in components.items())
    )


def _section(name: str, component: BaseComponent, image: str) -> str:
    spec = component.component_spec
    said = (spec.description or "").strip()
    rows = "".join(_input(each, given) for each, given in (spec.inputs or {}).items())
    given = "".join(_output(each, made) for each, made in (spec.outputs or {}).items())
    head = "<tr><th>{}</th><th>Type</th><th>{}</th><th></th></tr>"
    return (
        f'<h2 id="{name}">{name}</h2><p>{escape(said)}</p>'
        f'<p class="muted">Source <code>components/{name}/</code> · image <code>{escape(image)}</code> · '
        f'<a href="{name}.yaml">{name}.yaml</a></p>'
        f"<table>{head.format('Input', 'Default')}{rows}{head.format('Output', '') if given else ''}{given}</table>"
    )


def _input(name: str, given: Any) -> str:
    default = "required" if not given.optional else "" if given.default is None else repr(given.default)
    said = FOR_ALL.get(name, given.description or "")
    return _row(name, _type(given.type), "filled in" if name == "platform" else default, said)


def _output(name: str, made: Any) -> str:
    return _row(name, _type(made.type), "", made.description or "")


def _row(*cells: str) -> str:
    name, kind, default, said = map(escape, cells)
    return f"<tr><td><code>{name}</code></td><td>{kind}</td><td><code>{default}</code></td><td>{said}</td></tr>"


def _type(found: str) -> str:
    """`system.Dataset@0.0.1` is Dataset."""
    return TYPES.get(found, str(found).partition("@")[0].rpartition(".")[2])
