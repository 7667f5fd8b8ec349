"""What all object stores have in common: keys and URIs, objects written once, a SHA-256 beside each."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from ..errors import AlreadyExists, Corrupt, DataError, PlatformError
from ..ports import Listed
from .files import partial

DIGEST = "sha256"
"""Name of the metadata that holds it, in hexadecimal."""


class ObjectStore(ABC):
    """A Store over a bucket, and a Source. An adapter brings the operations at the end, in terms of object names.

    Args:
        root: `scheme://bucket` or `scheme://bucket/prefix`.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.bucket, _, prefix = self.root.partition("://")[2].partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def put(self, key: str, source: bytes | Path) -> str:
        uri, name, digest = f"{self.root}/{key}", self._name(key), _sha256(source)
        with self.explained(f"{uri} could not be written"):
            if not self.create(name, source, digest):
                found = self.digest(name)
                if (found or _sha256(self.read(name)[0])) != digest:
                    raise AlreadyExists(f"{uri} holds other content, and objects are written once.")
        return uri

    def get(self, uri: str) -> bytes:
        with self.explained(f"{uri} cannot be read"):
            content, digest = self.read(self._at(uri))
        _check(uri, _sha256(content), digest)
        return content

    def fetch(self, uri: str, to: Path) -> None:
        with self.explained(f"{uri} could not be brought to {to}"), partial(to) as new:
            digest = self.download(self._at(uri), new)
            _check(uri, _sha256(new), digest)
            new.replace(to)

    def exists(self, key: str) -> bool:
        with self.explained(f"{self.root}/{key} cannot be looked for"):
            return self.digest(self._name(key)) is not None

    def list(self, prefix: str) -> Iterator[str]:
        with self.explained(f"{self.root} cannot be listed"):
            for name, _, _ in self.objects(self._prefix + prefix):
                yield name.removeprefix(self._prefix)

    def listed(self, prefix: str) -> Iterator[Listed]:
        with self.explained(f"{self.root} cannot be listed"):
            for name, size, mark in self.objects(self._prefix + prefix):
                yield Listed(key=name.removeprefix(self._prefix), size=size, mark=mark)

    def part(self, listed: Listed, start: int, stop: int) -> bytes:
        uri = f"{self.root}/{listed.key}"
        if start >= stop:
            return b""
        with self.explained(f"{uri} cannot be read"):
            content = self.extract(self._name(listed.key), listed.mark, start, stop)
        if content is None:
            raise DataError(f"{uri} changed after it was listed.", "run again when nobody writes there")
        return content

    def _name(self, key: str) -> str:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise PlatformError(f"{key!r} is not a key of the store {self.root}.")
        return self._prefix + key

    def _at(self, uri: str) -> str:
        if not uri.startswith(f"{self.root}/"):
            raise PlatformError(
                f"{uri} does not lie in the store {self.root}.", "use the store that the artifact was written to"
            )
        return self._name(uri[len(self.root) + 1 :])

    @abstractmethod
    def explained(self, what: str) -> AbstractContextManager[None]:
        """Turn what the library raises into a PlatformError that begins with `what`."""

    @abstractmethod
    def create(self, name: str, source: bytes | Path, digest: str) -> bool:
        """Write an object whole, with its digest; False if there is one of this name."""

    @abstractmethod
    def read(self, name: str) -> tuple[bytes, str]:
        """Content and digest; an empty digest if it was not written by us."""

    @abstractmethod
    def download(self, name: str, to: Path) -> str:
        """Write the content to a file, and give the digest."""

    @abstractmethod
    def digest(self, name: str) -> str | None:
        """The digest, empty if it was not written by us; None if there is no object."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """Name, size, and the bucket's mark of the content, of all objects whose names begin so, sorted."""

    @abstractmethod
    def extract(self, name: str, mark: str, start: int, stop: int) -> bytes | None:
        """Bytes from `start` to before `stop`; None if there is no object with this mark any more."""


def _sha256(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(uri: str, found: str, wanted: str) -> None:
    if wanted and found != wanted:
        raise Corrupt(f"{uri} is not what was written: its SHA-256 is {found}, not {wanted}.")
