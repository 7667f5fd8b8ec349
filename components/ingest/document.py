"""`data.yaml`: where it is, what it says about classes and splits, and the errors that people make in it."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..runtime.artifacts import Split
from ..runtime.errors import DataError, UserError
from ..runtime.folder import local_path

MAX_BYTES = 4 << 20
KEYS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Document:
    """What a `data.yaml` says.

    Args:
        file: The file itself.
        root: The folder that its entries are relative to.
        names: Of the classes, by id.
        splits: For each split that it names, its key there and the entries: folders, or lists of images.
    """

    file: Path
    root: Path
    names: tuple[str, ...]
    splits: dict[Split, tuple[str, tuple[str, ...]]]


def find(source: str) -> Path:
    """The `data.yaml` of a source, which names the file or its folder.

    Raises:
        UserError: There is no such thing.
    """
    path = local_path(source)
    try:
        if path.is_dir():
            there = sorted(p for p in path.iterdir() if p.suffix.lower() in (".yaml", ".yml"))
            named = [p for p in there if p.stem in ("data", "dataset")] or there
            if len(named) != 1:
                seen = ", ".join(p.name for p in named[:5]) or "none"
                raise DataError(
                    f"{path} should hold one data.yaml; found: {seen}.", "give the path of the data.yaml itself"
                )
            return named[0].absolute()
        if path.is_file():
            return path.absolute()
    except OSError as error:
        raise UserError(f"source {source} cannot be read: {error.strerror}.", f"ls -ld {path}") from error
    raise UserError(f"source {source} does not exist.", f"ls {path.parent}")


def read(file: Path) -> Document:
    """Read a `data.yaml`.

    Raises:
        DataError: It is not YAML (with the line), has no class names, or its folder does not exist.
    """
    values = _mapping(file)
    if "kpt_shape" in values:
        raise DataError(
            f"{file} has kpt_shape: its labels are poses, and a detector learns from boxes.", f"give boxes in {file}"
        )
    splits: dict[Split, tuple[str, tuple[str, ...]]] = {}
    for split, keys in KEYS.items():
        key = next((key for key in keys if values.get(key) not in (None, "", [])), None)
        if key is not None:
            entries = values[key] if isinstance(values[key], list) else [values[key]]
            if not all(isinstance(entry, str) and entry for entry in entries):
                raise DataError(
                    f"{file}: {key} is {values[key]!r}; a folder, a .txt file or a list of them is known.",
                    f"edit {file}",
                )
            splits[split] = key, tuple(entries)
    return Document(file, _root(file, values), _names(file, values), splits)


def _mapping(file: Path) -> dict[object, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(
                f"{file} is larger than {MAX_BYTES >> 20} MiB: it is no data.yaml.", "give the path of the data.yaml"
            )
        values = yaml.safe_load(content)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.", f"ls -l {file}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that is none
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"{file} is not YAML{where}: {problem}.", f"edit {file}") from error
    if not isinstance(values, dict):
        raise DataError(
            f"{file} holds {type(values).__name__}, not keys and values such as names: [cat, dog].", f"edit {file}"
        )
    return values


def _root(file: Path, values: dict[object, Any]) -> Path:
    """`path` is relative to the file; a data set that was moved together with its file is found as well."""
    given = values.get("path")
    if given is None or given == "":
        return file.parent
    root = Path(os.path.normpath(file.parent / Path(str(given)).expanduser()))
    if root.is_dir():
        return root
    if not Path(str(given)).is_absolute() and Path(str(given)).name == file.parent.resolve().name:
        return file.parent
    raise DataError(
        f"{file}: path is {given}, and {root} is no folder.",
        f"correct path in {file}, or delete the line if the images lie beside it",
    )


def _names(file: Path, values: dict[object, Any]) -> tuple[str, ...]:
    given, count = values.get("names"), values.get("nc")
    if given is None and isinstance(count, int) and not isinstance(count, bool) and 0 < count <= 100_000:
        return tuple(f"class_{number}" for number in range(count))
    if isinstance(given, dict):
        ids = {int(key) if str(key).isascii() and str(key).isdigit() else key: value for key, value in given.items()}
        if set(ids) != set(range(len(given))):
            raise DataError(
                f"{file}: the ids in names are {list(given)[:8]}, not 0 to {len(given) - 1}.", f"edit names in {file}"
            )
        given = [ids[number] for number in range(len(given))]
    if not isinstance(given, list) or not given:
        raise DataError(
            f"{file}: names is {given!r}; at least one class needs a name.", f"write names: [cat, dog] in {file}"
        )
    for name in given:
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise DataError(
                f"{file}: a class is named {name!r}, which is no text.",
                f'put it in quotes in {file}, as in names: ["no"]',
            )
    names = tuple(str(name).strip() for name in given)
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{file}: {times} classes are named {name}.", f"edit names in {file}")
    if count is not None and count != len(names):
        raise DataError(f"{file}: nc is {count}, and names has {len(names)}.", f"edit nc or names in {file}")
    return names
