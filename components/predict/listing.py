"""What is to be predicted, frozen: every image of a source, sorted, in shards that are named by their content."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath

from ..runtime.artifacts import content_id
from ..runtime.config import Predict
from ..runtime.errors import DataError, UserError
from ..runtime.folder import IMAGES, PARQUET, SCHEMES, local_path
from ..runtime.lines import say
from ..runtime.ports import Listed, Source
from ..runtime.records import Record
from ..runtime.wiring import open_source

TOLD = 10_000
"""Files between two lines of progress."""


class Shard(Record):
    """Images whose predictions are written as one object.

    Args:
        number: Its place in the listing.
        files: One file an image; of Parquet, the one file that they are rows of.
        rows: Of Parquet, the first of them and the one after the last.
    """

    number: int
    files: tuple[Listed, ...]
    rows: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        return self.rows[1] - self.rows[0] if self.rows else len(self.files)

    def content(self, columns: Sequence[str]) -> str:
        """Hash of what is in it: names and marks of its images, wherever they lie and whatever is beside them.

        Args:
            columns: Those of Parquet that are read.
        """
        files = [[file.key, file.mark] for file in self.files]
        return content_id([files, self.rows, list(columns) if self.rows else None])


def root_of(images: str) -> tuple[str, str]:
    """Where the files of a source lie, and the key of the one that it names, or of the folder; empty is all.

    Raises:
        UserError: There is no such place.
    """
    if images.startswith(SCHEMES):
        root = images.rstrip("/")
        above, _, name = root.rpartition("/")
        return (above, name) if name.endswith(PARQUET) and above.count("/") > 1 else (root, "")
    path = local_path(images, "images")
    if path.is_dir():
        return str(path.absolute()), ""
    if path.is_file() and path.suffix.lower() == PARQUET:
        return str(path.absolute().parent), path.name
    problem = "is neither a folder nor a .parquet file" if path.exists() else "does not exist"
    raise UserError(f"images is {images}, which {problem}.", f"ls -ld {path}")


def freeze(config: Predict) -> tuple[list[Shard], int]:
    """List a source, and divide it into shards.

    Returns:
        The shards, and how many images they hold.

    Raises:
        UserError: It cannot be read, or Parquet lacks a column.
        DataError: It holds nothing, or both images and Parquet.
    """
    root, name = root_of(config.images)
    source = open_source(root)
    found = []
    for file in source.listed(name):
        if _meant(file.key, name):
            found.append(file)
            if len(found) % TOLD == 0:
                say(f"predict: {len(found)} files are listed")
    kinds = {_suffix(file.key) == PARQUET for file in found}
    if len(kinds) != 1:
        what = "both images and Parquet files" if kinds else "neither images nor Parquet files"
        raise DataError(f"images is {config.images}, which holds {what}.", "give a folder of one kind")
    cut = _parquet(source, found, config) if kinds.pop() else _images(found, config.shard_images)
    shards = [Shard(number=number, files=files, rows=rows) for number, (files, rows) in enumerate(cut)]
    count = sum(shard.count for shard in shards)
    if not count:
        raise DataError(f"images is {config.images}, whose Parquet files have 0 rows.", "correct images")
    return shards, count


def _suffix(key: str) -> str:
    return PurePosixPath(key).suffix.lower()


def _meant(key: str, name: str) -> bool:
    """Whether a key is of the source and no litter: hidden files are nobody's, `_SUCCESS` and `_delta_log` tools'."""
    kind = _suffix(key)
    if kind not in IMAGES | {PARQUET} or (name and key != name and not key.startswith(f"{name}/")):
        return False
    litter = "." if kind in IMAGES else (".", "_")
    return key == name or not any(part.startswith(litter) for part in key.split("/"))


def _images(found: Sequence[Listed], size: int) -> Iterator[tuple[tuple[Listed, ...], None]]:
    for start in range(0, len(found), size):
        yield tuple(found[start : start + size]), None


def _parquet(
    source: Source, found: Sequence[Listed], config: Predict
) -> Iterator[tuple[tuple[Listed, ...], tuple[int, int]]]:
    from .parquet import rows_of

    for file in found:
        rows = rows_of(source, file, (config.image_column, config.id_column))
        for start in range(0, rows, config.shard_images):
            yield (file,), (start, min(start + config.shard_images, rows))


def read_together(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Shards that one task reads: one of images; all of one Parquet file, which is gone through once."""
    if not shards or shards[0].rows is None:
        return [[shard] for shard in shards]
    return [list(group) for _, group in groupby(shards, lambda shard: shard.files[0].key)]
