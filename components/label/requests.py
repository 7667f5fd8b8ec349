"""Requests for labels: images in the landing place, to which people or tools add labels in their own time.

A request's folder is a YOLO data set that lacks `labels/`; once they are there, it is a source that ingest reads.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import yaml

from ..runtime.artifacts import LabelRequest, Release, content_id
from ..runtime.errors import PlatformError
from ..runtime.manifests import load
from ..runtime.parallel import each
from ..runtime.ports import Store

WRITES = 8
"""Images that are written at once: each waits until the store has it."""

BEGINNINGS = {b"\x89PNG": ".png", b"RIFF": ".webp", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}
"""How image files begin. What is none of these is called .jpg: validate says what it is."""

TELL = """\
These images were sent to the endpoint {endpoint}, which seems to do worse on them. They want labels.

For each images/NAME.jpg (or .png, ...) write labels/NAME.txt, in a folder beside images. Each line is one object:

    CLASS CENTRE_X CENTRE_Y WIDTH HEIGHT

CLASS is a number from the list below, the rest are fractions of the image's width and height, from 0 to 1.
An image without any object gets an empty file. Retraining can begin when every image has its file; rename nothing, and
put each file there when it is finished.

{classes}
"""


def open_request(
    store: Store,
    landing: Store,
    endpoint: str,
    release: Release,
    names: Sequence[str],
    pictures: Sequence[bytes],
    reason: str,
    now: float,
) -> LabelRequest:
    """Ask for labels. Killed and run again, it goes on; the same images of the same release are asked for once.

    Args:
        store: Receives the record of the request, last.
        landing: Receives the images, `data.yaml` and a text for whoever labels.
        release: That answered them.
        names: Class names.
        pictures: Encoded images; equal ones count once.
        reason: For people.
        now: Seconds since the epoch.

    Raises:
        ValueError: There are no images.
    """
    if not pictures:
        raise ValueError("a request for labels needs an image")
    hashed = {hashlib.sha256(picture).hexdigest(): picture for picture in pictures}
    id = content_id([endpoint, release.id, sorted(hashed)])
    for key in _keys(store, endpoint):
        if key.endswith(f"-{id}.json"):
            return load(store, key, LabelRequest)
    folder = f"{endpoint}/{id}"
    files = {f"{sha256[:16]}{_suffix(picture)}": picture for sha256, picture in sorted(hashed.items())}
    named = [(f"{folder}/images/{name}", picture) for name, picture in files.items()]
    for _ in each(partial(_put, landing), named, "label: wrote", WRITES):
        pass
    classes = "\n".join(f"{number} {name}" for number, name in enumerate(names))
    landing.put(f"{folder}/data.yaml", yaml.safe_dump({"names": list(names)}, allow_unicode=True).encode())
    landing.put(f"{folder}/README.txt", TELL.format(endpoint=endpoint, classes=classes).encode())
    request = LabelRequest(
        id=id,
        endpoint=endpoint,
        release=release.id,
        at=now,
        reason=reason,
        folder=f"{landing.root}/{folder}",
        images=tuple(files),
    )
    store.put(f"requests/{endpoint}/{int(now * 1000):013d}-{id}.json", request.to_json())
    return request


def requests(store: Store, endpoint: str) -> list[LabelRequest]:
    """All requests of an endpoint, oldest first."""
    found: dict[str, LabelRequest] = {}
    for key in _keys(store, endpoint):
        request = load(store, key, LabelRequest)
        found.setdefault(request.id, request)  # two that asked at once
    return list(found.values())


def missing(landing: Store, request: LabelRequest) -> list[str]:
    """The images that have no label file yet. What is in the files is for validate to say.

    Raises:
        PlatformError: The request lies in another landing place.
    """
    root, _, folder = request.folder.partition(f"{landing.root}/")
    if root:
        raise PlatformError(
            f"{request.folder} does not lie in the landing place {landing.root}.",
            "correct landing in the platform file",
        )
    prefix = f"{folder}/labels/"
    there = {key.removeprefix(prefix) for key in landing.list(prefix)}
    return [name for name in request.images if f"{name.rpartition('.')[0]}.txt" not in there]


def _keys(store: Store, endpoint: str) -> list[str]:
    return list(store.list(f"requests/{endpoint}/"))


def _put(landing: Store, named: tuple[str, bytes]) -> None:
    landing.put(*named)


def _suffix(picture: bytes) -> str:
    return next((suffix for start, suffix in BEGINNINGS.items() if picture.startswith(start)), ".jpg")
