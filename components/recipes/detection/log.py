"""The prediction log: what a version was asked and what it saw, batch by batch in the store, written and read.

A batch is two objects: the encoded images end to end, then `predictions/<endpoint>/<ms>-<version>-<server>.npz`, where
`<ms>` is when its first request came, in milliseconds since the epoch, and `<server>` the process that wrote it. One
that is listed is whole, however its writer ended.
"""

import bisect
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...runtime.blobs import put_blob
from ...runtime.errors import Corrupt
from ...runtime.ports import Store
from .features import FEATURES
from .predict import Detections
from .window import Picture, Window

SPAN_S = 3.0
"""Requests of one batch lie at most this far apart: so a reader knows which batches it need not read."""
NAME = re.compile(r".*/(\d{13})-(.+)-([0-9a-f]+)\.npz")
NOTHING = Window(
    at=np.zeros(0),
    feature_names=np.array(FEATURES),
    features=np.zeros((0, len(FEATURES)), np.float32),
    scores=np.zeros(0, np.float32),
    classes=np.zeros(0, np.int64),
    boxes=np.zeros((0, 4), np.float32),
    offsets=np.zeros(1, np.int64),
    embeddings=np.zeros((0, 0), np.float32),
)


class Entry(NamedTuple):
    """One request: when it was answered (seconds since the epoch), its encoded image, and what follows from it."""

    at: float
    content: bytes
    features: dict[str, float]
    found: Detections


def write(store: Store, endpoint: str, version: str, package: str, server: str, entries: Sequence[Entry]) -> str:
    """Write a batch and give its URI.

    Args:
        package: Id of the package that was asked.
        server: Names the process, in hexadecimal digits.
        entries: One at least, the first one the oldest, none later than `SPAN_S` after it.

    Raises:
        PlatformError: It could not be written.
    """
    found = [entry.found for entry in entries]
    images = put_blob(store, b"".join(entry.content for entry in entries), ".images")
    content = io.BytesIO()
    np.savez(
        content,
        version=np.array(version),
        package=np.array(package),
        at=np.array([entry.at for entry in entries], np.float64),
        feature_names=np.array(list(entries[0].features)),
        features=np.array([list(entry.features.values()) for entry in entries], np.float32),
        scores=np.concatenate([seen.scores for seen in found]),
        classes=np.concatenate([seen.classes for seen in found]),
        boxes=np.concatenate([seen.boxes for seen in found]),
        offsets=np.cumsum([0, *map(len, found)], dtype=np.int64),
        embeddings=np.stack([seen.embedding for seen in found]),
        picture_uri=np.array(images.uri),
        picture_hashes=np.array([hashlib.sha256(entry.content).hexdigest() for entry in entries]),
        picture_offsets=np.cumsum([0, *(len(entry.content) for entry in entries)], dtype=np.int64),
    )
    key = f"predictions/{endpoint}/{int(entries[0].at * 1000):013d}-{version}-{server}.npz"
    return store.put(key, content.getvalue())


def read_window(
    store: Store, endpoint: str, version: str, last: int, since: float = 0.0, before: float | None = None
) -> tuple[Window, list[str]]:
    """The newest requests of a version, oldest first, merged over its servers.

    Args:
        last: How many, at most.
        since: None that came earlier, in seconds since the epoch.
        before: None that came then or later.

    Returns:
        The requests, and a sentence about each object that was left out.

    Raises:
        PlatformError: The store is away.
    """
    until = float("inf") if before is None else before
    parts: list[Window] = []
    came: list[float] = []
    left_out: list[str] = []
    made_by = None
    for first, key in _newest_first(store, endpoint, version):
        latest = first + 0.001 + SPAN_S  # of this batch, and of all that follow
        if latest < since or len(came) - bisect.bisect_right(came, latest) >= last:
            break
        if first >= until:
            continue
        try:
            package, batch = _parse(store.get(f"{store.root}/{key}"), version)
        except Corrupt as error:
            left_out.append(f"{key} was left out: {error.message}")
            continue
        made_by = made_by or (package, batch.feature_names.tolist())
        if (package, batch.feature_names.tolist()) != made_by:
            left_out.append(f"{key} was left out: it is of another package, or of other features, than newer ones.")
            continue
        parts.append(batch)
        came = sorted([*came, *batch.at[(batch.at >= since) & (batch.at < until)].tolist()])
    window = _joined(parts or [NOTHING])
    order = np.argsort(window.at, kind="stable")
    order = order[(window.at[order] >= since) & (window.at[order] < until)]
    return _chosen(window, order[max(len(order) - last, 0) :]), left_out


def pictures_of(store: Store, pictures: Sequence[Picture]) -> Iterator[bytes]:
    """The encoded images of requests, each object read once as long as its pictures stand together.

    Raises:
        Corrupt: One is not what was written.
        PlatformError: One cannot be read.
    """
    at, content = "", b""
    for picture in pictures:
        if picture.uri != at:
            at, content = picture.uri, store.get(picture.uri)
        image = content[picture.offset : picture.offset + picture.size]
        if hashlib.sha256(image).hexdigest() != picture.sha256:
            raise Corrupt(f"bytes {picture.offset} to {picture.offset + picture.size} of {at} are not what was logged.")
        yield image


def picture_of(store: Store, picture: Picture) -> bytes:
    """The encoded image of one request; for many, `pictures_of` reads less."""
    return next(pictures_of(store, [picture]))


def _newest_first(store: Store, endpoint: str, version: str) -> Iterator[tuple[float, str]]:
    for key in reversed(list(store.list(f"predictions/{endpoint}/"))):
        name = NAME.fullmatch(key)
        if name and name[2] == version:
            yield int(name[1]) / 1000, key


def _parse(content: bytes, version: str) -> tuple[str, Window]:
    """The package of a batch, and its requests.

    Raises:
        Corrupt: It is not whole, or not a batch of this version.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            if damaged := members.testzip():  # else a damaged header might pass off half an array as whole
                raise Corrupt(f"{damaged} is damaged.")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            data = {name: stored[name] for name in stored.files}
        starts, hashes = data["picture_offsets"].tolist(), data["picture_hashes"].tolist()
        uri = str(data["picture_uri"])
        batch = Window(
            **{name: data[name] for name in Window._fields if name != "pictures"},
            pictures=tuple(
                Picture(uri, sha256, start, stop - start)
                for sha256, start, stop in zip(hashes, starts[:-1], starts[1:], strict=True)
            ),
        )
        requests, seen = len(batch.at), len(batch.scores)
        rows = {len(batch.features), len(batch.offsets) - 1, len(batch.embeddings), len(batch.pictures)}
        whole = rows == {requests} and {len(batch.classes), len(batch.boxes), int(batch.offsets[-1])} == {seen}
        if not whole or str(data["version"]) != version:
            raise Corrupt(f"it is not a batch of {version}.")
        return str(data["package"]), batch
    except Corrupt:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise whatever damaged bytes lead them to
        raise Corrupt(f"it is not whole: {str(error) or type(error).__name__}.") from error


def _joined(parts: Sequence[Window]) -> Window:
    return Window(
        feature_names=parts[0].feature_names,
        offsets=np.concatenate([[0], *(np.diff(part.offsets) for part in parts)]).cumsum(),
        pictures=tuple(picture for part in parts for picture in part.pictures),
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("at", "features", "scores", "classes", "boxes", "embeddings")
        },
    )


def _chosen(window: Window, order: NDArray[np.intp]) -> Window:
    """Some requests of a window, in another order."""
    counts = np.diff(window.offsets)[order]
    offsets = np.concatenate([[0], counts]).cumsum()
    detections = np.arange(offsets[-1]) + np.repeat(window.offsets[order] - offsets[:-1], counts)
    return Window(
        at=window.at[order],
        feature_names=window.feature_names,
        features=window.features[order],
        scores=window.scores[detections],
        classes=window.classes[detections],
        boxes=window.boxes[detections],
        offsets=offsets,
        embeddings=window.embeddings[order],
        pictures=tuple(window.pictures[index] for index in order),
    )
