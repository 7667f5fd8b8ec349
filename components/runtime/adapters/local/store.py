"""A folder as store."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...errors import AlreadyExists, PlatformError
from ..files import partial


class LocalStore:
    """`file:///folder`. An object appears under its name by a hard link, which is atomic and never replaces one."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._folder = Path(self.root.removeprefix("file://"))

    def _path(self, key: str) -> Path:
        path = self._folder / key
        if not key or ".." in path.parts or key.startswith("/"):
            raise PlatformError(f"{key!r} is not a key of the store {self.root}.")
        return path

    def _at(self, uri: str) -> Path:
        if not uri.startswith(f"{self.root}/"):
            raise PlatformError(
                f"{uri} does not lie in the store {self.root}.", "use the store that the artifact was written to"
            )
        return self._path(uri[len(self.root) + 1 :])

    def put(self, key: str, source: bytes | Path) -> str:
        target, uri = self._path(key), f"{self.root}/{key}"
        try:
            with partial(target) as new:
                if isinstance(source, Path):
                    shutil.copyfile(source, new)
                else:
                    new.write_bytes(source)
                with new.open("rb") as file:
                    os.fsync(file.fileno())
                new.chmod(0o444)
                try:
                    os.link(new, target)
                except FileExistsError:
                    if _digest(target) != _digest(new):
                        raise AlreadyExists(f"{uri} holds other content, and objects are written once.") from None
        except OSError as error:
            raise PlatformError(
                f"{uri} could not be written: {error.strerror}.",
                f"df -h {self._folder}; then run the same command again",
            ) from error
        return uri

    def get(self, uri: str) -> bytes:
        try:
            return self._at(uri).read_bytes()
        except OSError as error:
            raise PlatformError(f"{uri} cannot be read: {error.strerror}.") from error

    def fetch(self, uri: str, to: Path) -> None:
        try:
            with partial(to) as new:
                new.unlink()
                try:
                    os.link(self._at(uri), new)
                except OSError:  # another file system
                    shutil.copyfile(self._at(uri), new)
                new.replace(to)
        except OSError as error:
            raise PlatformError(f"{uri} could not be brought to {to}: {error.strerror}.") from error

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        folder = self._folder / prefix.rpartition("/")[0]
        paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".partial-"))
        keys = (path.relative_to(self._folder).as_posix() for path in paths)
        yield from sorted(key for key in keys if key.startswith(prefix))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
