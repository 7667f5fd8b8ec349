"""All predictions of a batch, gone through once: what the manifest and the page tell of them."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ..recipes.detection.draw import draw, to_jpeg_uri
from ..recipes.detection.predict import Detections, decode
from ..runtime.artifacts import Blob, Part, Predictions, content_id
from ..runtime.blobs import put_blob
from ..runtime.parallel import each
from ..runtime.ports import Store
from ..runtime.wiring import open_source
from . import parts
from .flow import contents
from .listing import Shard, root_of
from .page import Example, Seen, render
from .spec import PredictSpec

READS = 16
EXAMPLES, WIDTH = 12, 320
Best = tuple[float, Shard, int, dict[str, Any]]
"""Of a class: the highest score, the shard of its image, the place in it, the row."""


def summed(spec: PredictSpec, store: Store, shards: Sequence[Shard]) -> Predictions:
    """The manifest of a batch whose shards are all there.

    Raises:
        PlatformError: One is missing.
        Corrupt: One does not hold the images of its shard.
    """
    seen, best, listed = Seen(), dict[str, Best](), list[Part]()
    for shard, (blob, table) in zip(
        shards, each(partial(_part, spec, store), shards, "predict: looked at", READS), strict=True
    ):
        rows, before = table.to_pylist(), seen.bad
        for at, row in enumerate(rows):
            seen.add(row)
            for label, score in zip(row["labels"], row["scores"], strict=True):
                if label not in best or score > best[label][0]:
                    best[label] = score, shard, at, row
        listed.append(Part(blob=blob, count=len(rows), bad=seen.bad - before))
    names, config = spec.package.names, spec.config
    facts = (("Images", config.images), ("Package", spec.package.id), ("Release", spec.release))
    page = render(seen, names, facts, _examples(spec, best))
    return Predictions(
        id=content_id(["predictions.v1", spec.package.id, spec.shards.sha256, [part.blob.sha256 for part in listed]]),
        lineage=spec.lineage,
        package=spec.package.id,
        release=spec.release,
        names=names,
        source=config.images,
        listing=spec.shards,
        count=seen.images,
        bad=seen.bad,
        parts=tuple(listed),
        found={name: seen.boxes[name] for name in names},
        page=put_blob(store, page.encode(), ".html"),
    )


def _part(spec: PredictSpec, store: Store, shard: Shard) -> tuple[Blob, pa.Table]:
    uri = f"{store.root}/{spec.part_key(shard)}"
    content = store.get(uri)
    blob = Blob(uri=uri, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    return blob, parts.decode(content, shard, uri)


def _examples(spec: PredictSpec, best: dict[str, Best]) -> list[Example]:
    """The surest image of each class, with all that was seen in it."""
    source, names = open_source(root_of(spec.config.images)[0]), spec.package.names
    examples = []
    for label, (score, shard, at, row) in sorted(best.items(), key=lambda entry: -entry[1][0])[:EXAMPLES]:
        if shard.rows:
            one = shard.but(rows=(shard.rows[0] + at, shard.rows[0] + at + 1))
        else:
            one = shard.but(files=(shard.files[at],))
        _, _, _, content = next(contents(source, [one], spec.columns, 1))
        found = Detections(
            boxes=np.array(row["boxes"], np.float32),
            scores=np.array(row["scores"], np.float32),
            classes=np.array([names.index(label) for label in row["labels"]], np.int64),
            embedding=np.zeros(0, np.float32),
        )
        drawn = draw(decode(content or b""), found, names)
        examples.append(Example(f"{label} {score:.2f}", row["path"], to_jpeg_uri(drawn, WIDTH)))
    return examples
