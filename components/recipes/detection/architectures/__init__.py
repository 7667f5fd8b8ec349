"""Architectures by name: ours, YAML files in this folder, and those of ultralytics that a package can be made of."""

import difflib
import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml

from ....runtime.errors import UserError


def find(name: str) -> Path:
    """Give the path from which ultralytics builds an architecture; it may name a scale of a file (`yolo11n.yaml`).

    Nothing of ultralytics is imported.

    Raises:
        UserError: No architecture has this name.
    """
    own = Path(__file__).parent / f"{name}.yaml"
    if re.fullmatch(r"[\w-]+", name) and own.exists():
        return own
    known = _of_ultralytics()
    if name in known:
        return Path(f"{name}.yaml")
    names = [*sorted(path.stem for path in Path(__file__).parent.glob("*.yaml")), *known]
    close = difflib.get_close_matches(name, names, 3) or names[:8]
    raise UserError(f"architecture is {name!r}: there is none of this name.", f"choose one, such as {', '.join(close)}")


def can_look() -> bool:
    """Whether ultralytics is here, so that `find` knows all names; the image of the steps has it not."""
    return importlib.util.find_spec("ultralytics") is not None


def _of_ultralytics() -> list[str]:
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        return []
    found = []
    for path in sorted(Path(spec.origin).parent.glob("cfg/models/*/*.yaml")):
        document: dict[str, Any] = yaml.safe_load(path.read_text())
        # Other heads, and those without NMS, give predictions of another form than a package decodes.
        if document["head"][-1][2] != "Detect" or document.get("end2end"):
            continue
        stem, _, variant = path.stem.partition("-")
        scales = document.get("scales") or {"": None}
        found += [f"{stem}{scale}{'-' if variant else ''}{variant}" for scale in scales]
    return found
