"""Content-addressed bytes over a store: written under their own hash, verified when they are read."""

import hashlib
from pathlib import Path

from .artifacts import Blob
from .errors import Corrupt
from .ports import Store


def put_blob(store: Store, source: bytes | Path, suffix: str = "") -> Blob:
    """Write bytes, or a file, once however often it is asked for. `suffix` is for people (".jpg")."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = source.stat().st_size
    else:
        digest, size = hashlib.sha256(source).hexdigest(), len(source)
    return Blob(uri=store.put(f"blobs/{digest[:2]}/{digest}{suffix}", source), sha256=digest, size=size)


def get_blob(store: Store, blob: Blob) -> bytes:
    """Read a blob.

    Raises:
        Corrupt: Its bytes are not the ones that were written.
    """
    content = store.get(blob.uri)
    if hashlib.sha256(content).hexdigest() != blob.sha256:
        raise Corrupt(f"{blob.uri} holds {len(content)} bytes that do not hash to its name; it was written with {blob.size}.")
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
