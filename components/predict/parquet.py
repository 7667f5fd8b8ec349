"""Parquet files as sources of images, read by ranges: no more of one than is needed."""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..runtime.errors import DataError, UserError
from ..runtime.ports import Listed, Source

BUFFER = 8 << 20
"""Bytes that are read ahead of a column."""


class _Ranges(io.RawIOBase):
    """A file of a source that is read where it is asked for."""

    def __init__(self, source: Source, listed: Listed) -> None:
        self._source, self._listed, self._at = source, listed, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._listed.size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._listed.size)
        content = self._source.part(self._listed, self._at, stop) if stop > self._at else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _open(source: Source, listed: Listed) -> Any:
    try:
        return pq.ParquetFile(_Ranges(source, listed), buffer_size=BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{listed.key} is not a Parquet file: {error}.", "remove it, or write it anew") from error


def rows_of(source: Source, listed: Listed, columns: Sequence[str]) -> int:
    """How many rows a file has.

    Args:
        columns: Of the images' bytes, and of what names them.

    Raises:
        UserError: It lacks a column, or it is of another type.
        DataError: It is no Parquet file.
    """
    file = _open(source, listed)
    schema = file.schema_arrow
    for parameter, name in zip(("image_column", "id_column"), columns, strict=True):
        if name not in schema.names:
            known = ", ".join(schema.names[:10])
            raise UserError(f"{parameter} is {name}, and {listed.key} has the columns {known}.", f"correct {parameter}")
    kind = schema.field(columns[0]).type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"image_column is {columns[0]}, which is of type {kind} in {listed.key}, not the bytes of image files.",
            "correct image_column",
        )
    return int(file.metadata.num_rows)


def read(
    source: Source, listed: Listed, ranges: Sequence[tuple[int, int]], columns: Sequence[str], most: int
) -> Iterator[tuple[int, int, str, bytes | None]]:
    """Go through a file once.

    Args:
        ranges: Rows that are wanted, from the first to before the last; rising, and apart.
        most: Rows in memory at a time.

    Yields:
        Position of the range, the row's place in it, what names the row, and its bytes.
    """
    image, name = columns
    file, at = _open(source, listed), 0
    starts = [start for start, _ in ranges]
    for group in range(file.num_row_groups):
        last = at + file.metadata.row_group(group).num_rows
        if not any(start < last and at < stop for start, stop in ranges):
            at = last
            continue
        for batch in file.iter_batches(most, row_groups=[group], columns=[image, name]):
            for id, content in zip(batch[name].to_pylist(), batch[image].to_pylist(), strict=True):
                place = bisect_right(starts, at) - 1
                if place >= 0 and at < ranges[place][1]:
                    yield place, at - starts[place], f"{listed.key}#{at}" if id is None else str(id), content
                at += 1
