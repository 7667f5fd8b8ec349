"""A source in an object store, brought to this machine while a step works on it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import DataError, FlywheelError
from ..runtime.folder import IMAGES, SCHEMES
from ..runtime.parallel import each
from ..runtime.wiring import open_store

WANTED = IMAGES | {".txt", ".yaml", ".yml"}
AT_ONCE = 16


@contextmanager
def near(source: str) -> Iterator[str]:
    """Give a source that can be read as files: itself, or a copy of what an object store holds.

    Args:
        source: A data.yaml or its folder: a path, file:///path, s3://bucket/folder or gs://bucket/folder.

    Raises:
        DataError: Nothing lies there.
        PlatformError: The object store cannot be read.
    """
    if not source.startswith(SCHEMES):
        yield source
        return
    root, document = source.rstrip("/"), ""
    if root.endswith((".yaml", ".yml")):
        root, _, document = root.rpartition("/")
    store = open_store(root)
    keys = [key for key in store.list("") if Path(key).suffix.lower() in WANTED]
    if not keys:
        raise DataError(f"{root} holds neither images nor a data.yaml.", "correct source")
    with tempfile.TemporaryDirectory(prefix="flywheel-source-") as folder:

        def bring(key: str) -> None:
            store.fetch(f"{root}/{key}", Path(folder, key))

        for _ in each(bring, keys, "ingest: brought", AT_ONCE):
            pass
        try:
            yield f"{folder}/{document}"
        except FlywheelError as error:  # of files that nobody else can see under this name
            raise type(error)(error.message.replace(folder, root), error.next.replace(folder, root)) from error
