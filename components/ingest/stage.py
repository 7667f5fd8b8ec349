"""Read a source into the store, by content: what a batch is does not depend on where, when or by whom it was read.

The source is the outside world, so it is listed and hashed each time; the watermark of the listing is the input that
reuse goes by.
"""

import hashlib
from dataclasses import dataclass
from functools import partial

from ..runtime.artifacts import Lineage, RawBatch, RawItem, content_id
from ..runtime.blobs import find_blob, put_blob
from ..runtime.config import Ingest
from ..runtime.errors import DataError
from ..runtime.lines import say
from ..runtime.parallel import each
from ..runtime.ports import Store
from ..runtime.records import to_lines
from ..runtime.step import step
from .listing import Found, Listing, listing
from .remote import near

MAX_LABEL = 1 << 20
"""Bytes of a label file that are read; validate refuses what is longer."""

COPIES = 8
"""Images that are copied at once: each waits until the disk has it."""


@dataclass(frozen=True)
class Seen:
    """One image as its bytes are now: digest and size in bytes, and the text of its label file."""

    found: Found
    sha256: str
    size: int
    label: str | None


def run(batch: str, source: str, platform: str, run_id: str) -> None:
    """Read a source and write its RawBatch to the path `batch`."""
    with step("ingest", platform, run_id) as here:
        config = Ingest.of(source=source)
        with near(config.source) as there:
            listed = listing(there)
            say(f"ingest: {len(listed.found)} images are listed in {config.source}")
            seen = list(each(look, listed.found, "ingest: hashed"))
            mark = watermark(listed, seen)
            made = here.reuse(
                RawBatch,
                config,
                (mark,),
                lambda: collect(here.store, config.source, listed.names, seen, mark, here.lineage()),
            )
        made.write(batch)
        here.sentence = describe(listed, seen)


def look(found: Found) -> Seen:
    """Hash an image and read its label file.

    Raises:
        DataError: One of them cannot be read.
    """
    try:
        with found.image.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if found.label is None:
            return Seen(found, sha256, size, None)
        with found.label.open("rb") as file:
            return Seen(found, sha256, size, file.read(MAX_LABEL + 1).decode(errors="replace"))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.", f"ls -l {error.filename}") from error


def watermark(listed: Listing, seen: list[Seen]) -> str:
    """Hash a listing: class names, and path, split, size and digests of each item. The same on any machine."""
    return content_id([listed.names, [(s.found.path, s.found.split, s.size, s.sha256, s.label) for s in seen]])


def collect(
    store: Store, source: str, names: tuple[str, ...], seen: list[Seen], mark: str, lineage: Lineage
) -> RawBatch:
    """Copy what is not in the store yet, and give the batch.

    Raises:
        DataError: A file changed after it was hashed.
    """
    items = list(each(partial(_copy, store), seen, "ingest: copied", COPIES))
    return RawBatch(
        id=content_id(["raw-batch.v1", mark]),
        lineage=lineage,
        source=source,
        watermark=mark,
        names=names,
        count=len(items),
        index=put_blob(store, to_lines(items), ".jsonl"),
    )


def _copy(store: Store, seen: Seen) -> RawItem:
    found = seen.found
    suffix = found.image.suffix.lower()
    blob = find_blob(store, seen.sha256, seen.size, suffix)
    if blob is None:
        try:
            content = found.image.read_bytes()
        except OSError as error:
            raise DataError(f"{found.image} cannot be read: {error.strerror}.", f"ls -l {found.image}") from error
        if hashlib.sha256(content).hexdigest() != seen.sha256:
            raise DataError(f"{found.image} changed while it was read.", "run again when nobody writes to the data set")
        blob = put_blob(store, content, suffix)
    return RawItem(path=found.path, image=blob, label=seen.label, split=found.split)


def describe(listed: Listing, seen: list[Seen]) -> str:
    """One sentence for a person."""
    count = {split: sum(s.found.split == split for s in seen) for split in ("train", "val", "test", None)}
    splits = ", ".join(f"{number} {split or 'without split'}" for split, number in count.items() if number)
    labelled = sum(s.label is not None for s in seen)
    return f"{len(seen)} images of {len(listed.names)} classes ({splits}); {labelled} have a label file."
