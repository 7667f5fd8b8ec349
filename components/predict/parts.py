"""Predictions as Parquet: a row an image. Pure: rows in, bytes out, and back."""

import io
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..runtime.errors import Corrupt, PlatformError
from .listing import Shard

COLUMNS = {
    "path": pa.string(),
    "sha256": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "boxes": pa.list_(pa.list_(pa.float32())),
    "labels": pa.list_(pa.string()),
    "scores": pa.list_(pa.float32()),
    "error": pa.string(),
}
"""Boxes are x0, y0, x1, y1 in pixels of the upright image, best first; `error` is why there are none, or null."""
SCHEMA = pa.schema(COLUMNS)
PLACED = pa.schema({"shard": pa.int32(), "at": pa.int32()} | COLUMNS)
"""The same on its way, with the shard and the place in it."""


def gathered(tables: Iterable[pa.Table], shards: Sequence[Shard]) -> Iterator[tuple[Shard, pa.Table]]:
    """Put rows that come in any order, from many workers, together again.

    Args:
        tables: As `PLACED` says.
        shards: Those whose rows come.

    Yields:
        A shard and its rows in their order, as soon as it has all of them.

    Raises:
        PlatformError: An image came twice, or never.
    """
    expected = {shard.number: shard for shard in shards}
    waiting: dict[int, list[pa.Table]] = {}
    for table in tables:
        for number in pc.unique(table["shard"]).to_pylist():
            rows = table.filter(pc.equal(table["shard"], number))
            waiting.setdefault(number, []).append(rows)
            if number not in expected or sum(map(len, waiting[number])) < expected[number].count:
                continue
            whole, shard = pa.concat_tables(waiting.pop(number)).sort_by("at"), expected.pop(number)
            if whole["at"].to_pylist() != list(range(shard.count)):
                raise PlatformError(f"images of shard {number} came twice from Ray.", "run the same command again")
            yield shard, whole.select(list(COLUMNS))
    if expected or waiting:
        raise PlatformError(
            f"images of {len(expected)} shards never came back from Ray, and of {len(waiting)} too many.",
            "run the same command again",
        )


def encode(table: pa.Table) -> bytes:
    """A Parquet file; the same rows give the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table.cast(SCHEMA).replace_schema_metadata(None), sink, compression="zstd")
    return sink.getvalue()


def decode(content: bytes, shard: Shard, where: str) -> pa.Table:
    """Read what `encode` wrote for a shard.

    Raises:
        Corrupt: It is not that: other rows, or other images.
    """
    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowException as error:
        raise Corrupt(f"{where} is not Parquet: {error}.") from error
    if not table.schema.equals(SCHEMA) or len(table) != shard.count:
        raise Corrupt(f"{where} has {len(table)} rows of {table.schema.names}, not {shard.count} predictions.")
    if shard.rows is None and table["path"].to_pylist() != [file.key for file in shard.files]:
        raise Corrupt(f"{where} is of other images than shard {shard.number} of the listing.")
    return table
