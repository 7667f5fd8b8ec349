"""Options that commands share, and how a command answers a script."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..components.runtime.config import Platform

Root = Annotated[Path, typer.Option("--root", help="Folder of this machine's store, registry and endpoints.")]
PlatformFile = Annotated[Path | None, typer.Option("--platform", help="Platform file; without one, this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]
Endpoint = Annotated[str, typer.Option("--endpoint", help="Name of the endpoint.")]
Port = Annotated[int, typer.Option("--port", help="Port of the endpoint on 127.0.0.1.", min=0, max=65535)]
Data = Annotated[str, typer.Option("--data", help="Folder or data.yaml of a YOLO data set: a path, s3:// or gs://.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of parameters.")]
Parameters = Annotated[list[str] | None, typer.Option("-p", "--parameter", help="NAME=VALUE, again and again.")]
ROOT, PORT = Path(".flywheel"), 8600


def platform_of(root: Path, file: Path | None) -> "Platform":
    """The platform of a file, or this machine."""
    from .platforms import read_platform

    return read_platform(root, file)


def print_json(document: object) -> None:
    """Print one JSON document."""
    json.dump(document, sys.stdout, indent=1)
    print()
