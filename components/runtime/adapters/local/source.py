"""A folder of this machine as it was listed: images and Parquet files, marked by their SHA-256."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError, UserError
from ...folder import IMAGES, PARQUET, images
from ...parallel import each
from ...ports import Listed

KINDS = IMAGES | {PARQUET}


class LocalSource:
    """A folder, which is read once to be listed. Hidden files are left out, and links that lead out of it refused."""

    def __init__(self, root: str) -> None:
        self._folder = Path(root)

    def listed(self, prefix: str) -> Iterator[Listed]:
        if not self._folder.is_dir():
            raise UserError(f"{self._folder} is no folder.", f"ls -ld {self._folder}")
        one = self._folder / prefix
        found = [one] if one.is_file() else images(self._folder, (f"{self._folder.resolve()}/",), KINDS)
        paths = {self._key(path): path for path in found}
        wanted = [paths[key] for key in sorted(paths) if key.startswith(prefix)]
        yield from each(self._look, wanted, "")

    def _key(self, path: Path) -> str:
        key = path.relative_to(self._folder).as_posix()
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the name of {str(path)!r} is not UTF-8.", "rename it") from error
        return key

    def _look(self, path: Path) -> Listed:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return Listed(key=self._key(path), size=file.tell(), mark=digest)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.", f"ls -l {path}") from error

    def part(self, listed: Listed, start: int, stop: int) -> bytes:
        path = self._folder / listed.key
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(start)
                content = file.read(stop - start)
        except OSError as error:
            raise DataError(f"{path} cannot be read any more: {error.strerror}.", f"ls -l {path}") from error
        whole = start == 0 and stop == listed.size
        if size != listed.size or (whole and hashlib.sha256(content).hexdigest() != listed.mark):
            raise DataError(f"{path} changed after it was listed.", "run again when nobody writes there")
        return content
