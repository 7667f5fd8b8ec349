"""Records in the store. Manifests are kept by id, so lineage can be walked from any artifact to its parents."""

from typing import TypeVar

from .artifacts import Manifest
from .ports import Store
from .records import RecordT

ManifestT = TypeVar("ManifestT", bound=Manifest)


def load(store: Store, key: str, kind: type[RecordT]) -> RecordT:
    """Read the record at a key.

    Raises:
        PlatformError: There is none.
        Corrupt: It is of another kind.
    """
    return kind.from_json(store.get(f"{store.root}/{key}"), key)


def _key(id: str) -> str:
    return f"artifacts/{id}.json"


def keep(store: Store, manifest: Manifest) -> str:
    """Write a manifest under its id and give its URI. The first lineage stands: the content is the same."""
    key = _key(manifest.id)
    if store.exists(key):
        return f"{store.root}/{key}"
    return store.put(key, manifest.to_json())


def find(store: Store, id: str, kind: type[ManifestT]) -> ManifestT:
    """Read the manifest with this id.

    Raises:
        PlatformError: The store has none.
        Corrupt: It is of another kind.
    """
    return load(store, _key(id), kind)
