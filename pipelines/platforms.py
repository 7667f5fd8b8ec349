"""Which platform a command works on: the file that it was given, or this machine."""

import re
from pathlib import Path

import yaml

from ..components.runtime.config import Platform
from ..components.runtime.errors import UserError

OPEN = re.compile(r"<[^<>]+>")
"""What `flywheel init` leaves to be filled in."""


def read_yaml(file: Path, what: str) -> dict[str, object]:
    """Read a YAML mapping that a person wrote.

    Raises:
        UserError: There is no such file, or it is not a mapping.
    """
    try:
        document = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"{what} {file} cannot be read: {error.strerror}.", f"ls -l {file}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {file} is not YAML: {' '.join(str(error).split())}.", f"correct {file}") from error
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise UserError(f"{what} {file} is not a mapping of names to values.", f"correct {file}")
    return document


def read_platform(root: Path, file: Path | None) -> Platform:
    """The platform of a file, or everything in one folder of this machine.

    `images` may name the file of digests that `make images` wrote, relative to the platform file.

    Raises:
        UserError: It is none, or not all of it is filled in.
    """
    if not file:
        return Platform.local(root)
    given = read_yaml(file, "platform file")
    if left := OPEN.findall(str(given)):
        raise UserError(f"platform file {file} still says {', '.join(left)}.", f"fill it in, in {file}")
    if isinstance(lock := given.get("images"), str):
        given["images"] = read_yaml(file.parent / lock, "images")
    return Platform.of(**given)
