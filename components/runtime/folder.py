"""The image files of a folder, with one rule for symbolic links: they may lead about in the source, never out of it."""

import os
import re
from collections.abc import Container, Iterator
from pathlib import Path
from urllib.parse import unquote

from .errors import DataError, UserError

IMAGES = frozenset(
    (
        ".avif",
        ".bmp",
        ".dng",
        ".gif",
        ".heic",
        ".heif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
    )
)
"""What counts as an image by its name. validate says which of them it can use: none is passed over in silence."""

PARQUET = ".parquet"
SCHEMES = ("s3://", "gs://")
"""Sources that are not of this machine."""


def local_path(uri: str, parameter: str = "source") -> Path:
    """The path that a person named, for a parameter.

    Raises:
        UserError: Its scheme is unknown.
    """
    parts = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/]*)(/.*)?", uri, re.DOTALL)
    if parts is None:
        return Path(uri).expanduser()
    if parts[1].lower() != "file" or parts[2] not in ("", "localhost") or not parts[3]:
        raise UserError(
            f"{parameter} is {uri}, and only a path, file:///path, s3://bucket/folder or gs://bucket/folder is read.",
            "copy the images to one of them and name that",
        )
    return Path(unquote(parts[3]))


def images(folder: Path, within: tuple[str, ...], kinds: Container[str] = IMAGES) -> Iterator[Path]:
    """Yield the image files under a folder. Hidden files (`.DS_Store`, `._a.jpg`) are nobody's images and are left out.

    Args:
        folder: Where to look.
        within: Real paths, each ending in `/`, that links may lead to.
        kinds: Suffixes of the files that are wanted.

    Raises:
        DataError: A folder cannot be read, or a link leads out of the source or nowhere.
    """
    yield from _walk(folder, within, kinds, frozenset((os.path.realpath(folder),)))


def _walk(folder: Path, within: tuple[str, ...], kinds: Container[str], above: frozenset[str]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.", f"ls -ld {folder}") from error
    for entry in found:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        image = path.suffix.lower() in kinds
        if entry.is_symlink() and (image or entry.is_dir()):
            inside(path, within)
        if entry.is_dir():
            real = os.path.realpath(path)
            if real not in above:  # a link to a folder above would never end
                yield from _walk(path, within, kinds, above | {real})
        elif image:
            yield path


def inside(path: Path, within: tuple[str, ...]) -> None:
    """Refuse a link that leaves the source: what a data set brings along must not name files of this machine.

    Raises:
        DataError: It does, or leads nowhere.
    """
    real = os.path.realpath(path)
    if not Path(real).exists():
        raise DataError(f"{path} is a symbolic link that leads nowhere.", f"rm {path}")
    if not real.startswith(within):
        raise DataError(
            f"{path} is a symbolic link out of the data set, to {real}.",
            "copy the file into the data set, or name its folder in data.yaml",
        )
