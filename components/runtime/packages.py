"""Bring a model package to a folder, each file verified: what evaluate, the model server and batch prediction read."""

from pathlib import Path

from .artifacts import ModelPackage
from .blobs import fetch_blob
from .ports import Store


def fetch_package(store: Store, package: ModelPackage, folder: Path) -> Path:
    """Bring all files of a package to `folder` under their own names.

    Raises:
        Corrupt: A file is not the one that was packaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in package.files.items():
        fetch_blob(store, blob, folder / name)
    return folder
