"""Images of coloured blocks on a grid, and a real ONNX detector that finds them as well as it is told to.

A block fills one cell of a 4 x 4 grid with its colour, and its class is the colour's name. So a test knows exactly what
a package sees: everything, unless it is blind in some cells or takes one colour for the next.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from kfp_flywheel.components.recipes.detection import golden
from kfp_flywheel.components.recipes.detection.predict import PackageConfig, Predictor
from kfp_flywheel.components.runtime.artifacts import (
    Checkpoint,
    DatasetVersion,
    Holdout,
    Lineage,
    ModelPackage,
    Release,
    Resolution,
    Sample,
    content_id,
)
from kfp_flywheel.components.runtime.blobs import put_blob
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.ports import Store
from kfp_flywheel.components.runtime.records import to_lines
from onnx import TensorProto, helper, numpy_helper

GRID, CELL = 4, 16
SIZE = GRID * CELL
COLOURS = ("red", "green", "blue")
LINEAGE = Lineage(code="test", image="local", run="test")


def model(names: Sequence[str], blind: Sequence[int], confused: Sequence[int], noise: float) -> onnx.ModelProto:
    """A cell's score for a class is its mean in that colour; `blind` cells see nothing, `confused` the next colour."""
    cells = GRID * GRID
    planes = np.array([COLOURS.index(name) for name in names], np.int64)
    gain = np.ones((1, 1, cells), np.float32)
    gain[..., list(blind)] = 0
    gain *= 1 + noise * np.sin(np.arange(cells, dtype=np.float32))
    swap = np.zeros((1, 1, cells), np.bool_)
    swap[..., list(confused)] = True
    column, row = np.tile(np.arange(GRID), GRID), np.repeat(np.arange(GRID), GRID)
    boxes = np.stack([(column + 0.5) * CELL, (row + 0.5) * CELL, np.full(cells, CELL), np.full(cells, CELL)])
    constants = {
        "boxes": boxes[None].astype(np.float32),
        "planes": planes,
        "others": np.roll(planes, 1),
        "gain": gain,
        "swap": swap,
        "by_cell": np.array([1, 3, cells], np.int64),
        "flat": np.array([1, 3], np.int64),
    }
    nodes = [
        helper.make_node("AveragePool", ["images"], ["means"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["means", "by_cell"], ["colours"]),
        helper.make_node("Gather", ["colours", "planes"], ["plain"], axis=1),
        helper.make_node("Gather", ["colours", "others"], ["other"], axis=1),
        helper.make_node("Where", ["swap", "other", "plain"], ["seen"]),
        helper.make_node("Mul", ["seen", "gain"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["predictions"], axis=1),
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "flat"], ["embedding"]),
    ]
    outputs = [("predictions", [1, 4 + len(names), cells]), ("embedding", [1, 3])]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def picture(
    seed: int, names: Sequence[str], cells: Sequence[int] = range(GRID * GRID)
) -> tuple[bytes, tuple[tuple[int, float, float, float, float], ...]]:
    """An encoded image of one to four blocks in some of the cells, and their labels."""
    rng = np.random.default_rng([7, seed])
    image = rng.integers(0, 30, (SIZE, SIZE, 3), dtype=np.uint8)
    boxes = []
    for cell in rng.choice(np.array(cells), int(rng.integers(1, 5)), replace=False):
        kind, x, y = int(rng.integers(len(names))), int(cell) % GRID, int(cell) // GRID
        channel = 2 - COLOURS.index(names[kind])
        image[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL, channel] = rng.integers(150, 256)
        boxes.append((kind, (x + 0.5) / GRID, (y + 0.5) / GRID, 1 / GRID, 1 / GRID))
    return cv2.imencode(".png", image)[1].tobytes(), tuple(boxes)


def dataset(
    store: Store,
    count: int = 40,
    names: Sequence[str] = ("red", "green"),
    only: Sequence[str] = (),
    groups: int = 0,
    cells: Sequence[int] = range(GRID * GRID),
    parent: DatasetVersion | None = None,
) -> DatasetVersion:
    """A data version whose holdout has `count` images.

    Args:
        only: If given, the classes of all its blocks.
        groups: If given, the number of scenes that the images are of.
        cells: Those that its blocks lie in.
        parent: If given, the version that this one grew from, whose holdouts it inherits.
    """
    samples, inherited = [], parent.holdouts if parent else ()
    first = sum(old.count for old in inherited)
    for number in range(first, first + count):
        content, boxes = picture(number, only or names, cells)
        boxes = tuple((names.index((only or names)[kind]), *rest) for kind, *rest in boxes)
        image = put_blob(store, content, ".png")
        path = f"test/{number:03d}.png"
        group = f"scene-{number % groups}" if groups else path
        samples.append(Sample(path=path, image=image, width=SIZE, height=SIZE, boxes=boxes, split="test", group=group))
    index = put_blob(store, to_lines(samples), ".jsonl")
    id = content_id([list(names), [(sample.image.sha256, sample.boxes) for sample in samples]])
    return DatasetVersion(
        id=id,
        lineage=LINEAGE,
        names=tuple(names),
        counts={"test": count},
        index=index,
        holdouts=(Holdout(dataset=id, count=count, index=index), *inherited),
    )


def package(
    store: Store,
    folder: Path,
    names: Sequence[str] = ("red", "green"),
    blind: Sequence[int] = (),
    confused: Sequence[int] = (),
    noise: float = 0.0,
    data: str = "data",
    golden_of: Path | None = None,
) -> ModelPackage:
    """Package such a detector into the store.

    Args:
        folder: Empty; receives the files.
        golden_of: Another package's golden.npz in place of its own.
    """
    folder.mkdir(parents=True)
    onnx.save(model(names, blind, confused, noise), str(folder / "model.onnx"))
    config = PackageConfig(names=tuple(names), image_size=SIZE)
    (folder / "config.json").write_text(config.line())
    predictor = Predictor(folder)
    images = [picture(1000 + number, names)[0] for number in range(2)]
    cases = [golden.Case(image, config.conf, predictor.predict(golden.decode(image))) for image in images]
    golden.write(folder / "golden.npz", cases)
    if golden_of is not None:
        (folder / "golden.npz").write_bytes(golden_of.read_bytes())
    np.savez(folder / "reference.npz", scores=np.zeros(0, np.float32))
    files = {path.name: put_blob(store, path, path.suffix) for path in sorted(folder.iterdir())}
    made = ModelPackage(
        id=content_id({name: blob.sha256 for name, blob in files.items()}),
        lineage=LINEAGE,
        family="detection",
        names=tuple(names),
        dataset=data,
        files=files,
        checkpoint=Checkpoint(blob=files["model.onnx"], digest="blocks"),
        curve=(),
        tracking_run="",
    )
    keep(store, made)
    return made


def resolution(store: Store, champion: ModelPackage | None = None) -> Resolution:
    """What resolve gives when this package is the champion, or when there is none."""
    release = champion and Release(
        id=content_id(["release", champion.id]),
        lineage=LINEAGE,
        model="detector",
        version="1",
        package=champion.id,
        package_uri=keep(store, champion),
        dataset=champion.dataset,
        report="report",
    )
    return Resolution(id="resolution", lineage=LINEAGE, endpoint="detector", champion=release, config="config")
