"""Content-addressed bytes over a store: written under their own hash, verified when they are read."""

import hashlib
from pathlib import Path

from .artifacts import Blob
from .errors import Corrupt
from .ports import Store


def find_blob(store: Store, sha256: str, size: int, suffix: str = "") -> Blob | None:
    """The blob of these bytes, if the store has it already. An object that is there is whole: it appeared at once."""
    key = _key(sha256, suffix)
    return Blob(uri=f"{store.root}/{key}", sha256=sha256, size=size) if store.exists(key) else None


def _key(sha256: str, suffix: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}{suffix}"


def put_blob(store: Store, source: bytes | Path, suffix: str = "") -> Blob:
    """Write bytes, or a file, once however often it is asked for. `suffix` is for people (".jpg")."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = source.stat().st_size
    else:
        digest, size = hashlib.sha256(source).hexdigest(), len(source)
    return find_blob(store, digest, size, suffix) or Blob(
        uri=store.put(_key(digest, suffix), source), sha256=digest, size=size
    )


def get_blob(store: Store, blob: Blob) -> bytes:
    """Read a blob.

    Raises:
        Corrupt: Its bytes are not the ones that were written.
    """
    content = store.get(blob.uri)
    if hashlib.sha256(content).hexdigest() != blob.sha256:
        raise Corrupt(
            f"{blob.uri} holds {len(content)} bytes that do not hash to its name; it was written with {blob.size}."
        )
    return content


def fetch_blob(store: Store, blob: Blob, to: Path) -> Path:
    """Bring a blob to a local path, verified. The file may be shared with the store: never write into it."""
    store.fetch(blob.uri, to)
    with to.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.sha256:
        to.unlink()
        raise Corrupt(f"{blob.uri} does not hash to {blob.sha256}.")
    return to
