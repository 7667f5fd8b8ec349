"""Manifests by id, `artifacts/<id>.json` in the store: lineage can be walked from any artifact to its parents."""

from typing import TypeVar

from .artifacts import Manifest
from .ports import Store

ManifestT = TypeVar("ManifestT", bound=Manifest)


def _key(id: str) -> str:
    return f"artifacts/{id}.json"


def keep(store: Store, manifest: Manifest) -> str:
    """Write a manifest under its id and give its URI. The first lineage stands: the content is the same."""
    key = _key(manifest.id)
    if store.exists(key):
        return f"{store.root}/{key}"
    return store.put(key, manifest.model_dump_json(indent=1).encode())


def find(store: Store, id: str, kind: type[ManifestT]) -> ManifestT:
    """Read the manifest with this id.

    Raises:
        PlatformError: The store has none.
        Corrupt: It is of another kind.
    """
    uri = f"{store.root}/{_key(id)}"
    return kind.parse(store.get(uri), uri)
