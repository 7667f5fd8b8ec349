"""What a source holds: its images, the label file and the given split of each.

`listing` is the one function that knows sources and formats. Today: a folder with YOLO labels, by `data.yaml`.
"""

import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..runtime.artifacts import Split
from ..runtime.errors import DataError
from ..runtime.folder import images, inside
from . import document
from .document import Document


@dataclass(frozen=True)
class Found:
    """One image of a source. `path` names it on any machine: relative, with `/`, in UTF-8."""

    path: str
    image: Path
    label: Path | None
    split: Split | None


@dataclass(frozen=True)
class Listing:
    """All images of a source, sorted by path and split, and the names of the classes."""

    names: tuple[str, ...]
    found: tuple[Found, ...]


def listing(source: str) -> Listing:
    """List a source without reading its images.

    Args:
        source: A data.yaml or its folder, as a path or file:///path.

    Raises:
        UserError: There is no such source, or its scheme is unknown.
        DataError: Its data.yaml is wrong, a split's folder is missing, a link leaves it, or it has no images.
    """
    read = document.read(document.find(source))
    splits: dict[Split, tuple[str, tuple[str, ...]]] = read.splits or _customary(read.root)
    places = {split: [_place(read, key, entry) for entry in entries] for split, (key, entries) in splits.items()}
    everything = read.root / "images" if (read.root / "images").is_dir() else read.root
    folders = [read.root, everything, *(p for each in places.values() for p in each if p.is_dir())]
    within = tuple({f"{path.resolve()}/" for one in folders for path in (one, _labels(one), _labels(one.resolve()))})

    found: dict[tuple[str, Split | None], Found] = {}
    given: dict[Split, set[str]] = {}
    for split, there in places.items():
        given[split] = set()
        for place in there:
            listed = list(images(place, within)) if place.is_dir() else _lines(place, read.root)
            if not listed and read.splits:
                raise DataError(f"{read.file}: {splits[split][0]} names {place}, which has no images.", f"ls {place}")
            for image in listed:
                _add(found, read.root, place, image, split, within)
                given[split].add(os.path.realpath(image))
    _apart(read, given)
    if "train" not in places:
        taken = {path for paths in given.values() for path in paths}
        for image in images(everything, within):
            if os.path.realpath(image) not in taken:
                _add(found, read.root, everything, image, None, within)
    if not found:
        raise DataError(f"{read.root} has no images.", f"correct path in {read.file}, or put the images beside it")
    return Listing(read.names, tuple(found[key] for key in sorted(found, key=lambda key: (key[0], key[1] or ""))))


def _customary(root: Path) -> dict[Split, tuple[str, tuple[str, ...]]]:
    """Without a word about splits, three folders that bear their names are given splits all the same."""
    customary: dict[Split, tuple[str, tuple[str, ...]]] = {}
    for split, names in document.KEYS.items():
        places = [
            place for name in names for place in (f"images/{name}", f"{name}/images", name) if (root / place).is_dir()
        ]
        if places:
            customary[split] = places[0], (places[0],)
    return customary if len(customary) == len(document.KEYS) else {}


def _place(read: Document, key: str, entry: str) -> Path:
    place = read.root / entry
    if not place.exists() and entry.startswith("../"):  # Roboflow's exports mean the folder itself
        place = read.root / entry.removeprefix("../")
    if place.is_dir() or (place.is_file() and place.suffix == ".txt"):
        return Path(os.path.normpath(place))
    problem = "is neither a folder nor a .txt list of images" if place.exists() else "does not exist"
    raise DataError(f"{read.file}: {key} names {entry}, and {place} {problem}.", f"correct {key} in {read.file}")


def _lines(file: Path, root: Path) -> list[Path]:
    """The images that a list names, relative to the list or to the data set."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a list of images: {error}.", f"head -3 {file}") from error
    listed = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        choices = [Path(os.path.normpath(base / line.strip())) for base in (file.parent, root)]
        image = next((choice for choice in choices if choice.is_file()), None)
        if image is None:
            raise DataError(
                f"line {number} of {file} names {line.strip()}, and {choices[0]} does not exist.", f"edit {file}"
            )
        listed.append(image)
    return listed


def _apart(read: Document, given: dict[Split, set[str]]) -> None:
    """One folder for two splits is a mistake in data.yaml, not thousands of duplicates."""
    for one, other in combinations(given, 2):
        both = given[one] & given[other]
        if both and len(both) in (len(given[one]), len(given[other])):
            raise DataError(
                f"{read.file}: {one} and {other} share {len(both)} images: what was learned cannot be judged by them.",
                f"give {one} and {other} images of their own, or delete both lines: then images are divided by a hash",
            )


def _add(
    found: dict[tuple[str, Split | None], Found],
    root: Path,
    place: Path,
    image: Path,
    split: Split | None,
    within: tuple[str, ...],
) -> None:
    base = place if place.is_dir() else place.parent
    if image.is_relative_to(root):
        path = image.relative_to(root)
    else:
        path = Path(split or "images") / (image.relative_to(base) if image.is_relative_to(base) else image.name)
    name = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    before = found.get((name, split))
    if before is not None and before.image != image:
        raise DataError(
            f"{before.image} and {image} would both be known as {name}.", "put the images of each split in one folder"
        )
    if before is None:
        found[name, split] = Found(name, image, _label(image, within), split)


def _label(image: Path, within: tuple[str, ...]) -> Path | None:
    """The label file: in `labels` in place of the path's last `images`, else beside the image; none is background."""
    for label in dict.fromkeys((_labels(image.parent) / f"{image.stem}.txt", image.with_suffix(".txt"))):
        if label.is_file():
            inside(label, within)
            return label
    return None


def _labels(folder: Path) -> Path:
    parts = list(folder.parts)
    for number in range(len(parts) - 1, -1, -1):
        if parts[number] == "images":
            parts[number] = "labels"
            break
    return Path(*parts)
