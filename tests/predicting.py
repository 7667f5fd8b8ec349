"""Batch prediction in tests; and its job, which notes what it writes and may kill itself: `python -m tests.predicting`.

NOTES names a file that gets the key of each part; after DIES_AFTER of them the job is dead at once.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from kfp_flywheel.components.predict import stage
from kfp_flywheel.components.predict.job import run
from kfp_flywheel.components.predict.spec import PredictSpec
from kfp_flywheel.components.recipes.detection.predict import Predictor, decode
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.adapters.objects import ObjectStore
from kfp_flywheel.components.runtime.artifacts import ModelPackage, Predictions
from kfp_flywheel.components.runtime.blobs import get_blob
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.components.runtime.manifests import find
from kfp_flywheel.components.runtime.orders import work
from kfp_flywheel.components.runtime.packages import fetch_package
from kfp_flywheel.components.runtime.step import StepRecord, run_records
from kfp_flywheel.components.runtime.wiring import connect

from tests.cluster.dying import dying
from tests.tiny import tiny_release

SMALL: dict[str, object] = {
    "shard_images": 4,
    "images_at_once": 3,
    "cpus_per_worker": 1,
    "max_bad_fraction": 0.1,
}
Rows = list[dict[str, Any]]


class Ran:
    """A folder in which predict runs, by a tiny detector, on a platform in it unless one is given."""

    def __init__(self, folder: Path, platform: Platform | None = None) -> None:
        self.folder, self.platform = folder, platform or Platform.local(folder / "flywheel")
        self.store = connect(self.platform).store
        self.release = tiny_release(self.store)
        self.release.write(folder / "release.json")

    def step(self, images: Path | str, run_id: str = "test", **config: object) -> None:
        paths = [str(self.folder / name) for name in ("release.json", "predictions.json", "page.html")]
        stage.run(*paths, self.platform.line(), run_id, images=str(images), **SMALL | config)

    @property
    def made(self) -> Predictions:
        return Predictions.read(self.folder / "predictions.json")

    @property
    def page(self) -> str:
        return (self.folder / "page.html").read_text()

    @property
    def rows(self) -> Rows:
        """What was predicted, as whoever reads the parts sees it."""
        tables = [pq.read_table(pa.BufferReader(get_blob(self.store, part.blob))) for part in self.made.parts]
        rows: Rows = pa.concat_tables(tables).to_pylist()
        return rows

    def record(self, run_id: str) -> StepRecord:
        return run_records(self.store, run_id)[0]

    def asked(self, contents: Mapping[str, bytes]) -> Rows:
        """Rows as the package gives them, asked here image by image; without digests and errors."""
        package = find(self.store, self.release.package, ModelPackage)
        with tempfile.TemporaryDirectory() as folder:
            predictor = Predictor(fetch_package(self.store, package, Path(folder)))
        rows: Rows = []
        for name, content in sorted(contents.items()):
            row: dict[str, Any] = {"path": name, "width": None, "height": None, "boxes": [], "labels": [], "scores": []}
            try:
                image = decode(content)
                found = predictor.predict(image)
                row |= {"width": image.shape[1], "height": image.shape[0], "boxes": found.boxes.tolist()}
                row |= {"scores": found.scores.tolist(), "labels": [package.names[kind] for kind in found.classes]}
            except UserError:
                pass
            rows.append(row)
        return rows


def without(rows: Rows, *names: str) -> Rows:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def noted(put: Callable[..., Any], dies_after: int) -> Callable[..., Any]:
    """The function, of which each write of a part is noted; after the last one nobody lives."""
    last = dying(put, [dies_after])

    def call(store: Any, key: str, source: bytes | Path) -> str:
        if "/parts/" not in key:
            return str(put(store, key, source))
        if "NOTES" in os.environ:
            with Path(os.environ["NOTES"]).open("a") as notes:
                notes.write(f"{key}\n")
        return str(last(store, key, source))

    return call


if __name__ == "__main__":
    for kind in (LocalStore, ObjectStore):
        kind.put = noted(kind.put, int(os.environ.get("DIES_AFTER", "0")))  # type: ignore[method-assign]
    work(PredictSpec, sys.argv[1], run)
