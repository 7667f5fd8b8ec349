"""Releases that pass for good and are not: slow, greedy, never ready; and a holdout on which a worse one is found."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from kfp_flywheel.components.recipes.detection.predict import Predictor, decode
from kfp_flywheel.components.runtime.artifacts import DatasetVersion, ModelPackage, content_id
from kfp_flywheel.components.runtime.blobs import put_blob
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.packages import fetch_package
from kfp_flywheel.components.runtime.ports import Store
from onnx import helper, numpy_helper

from tests.canaries import holdout
from tests.tiny import tiny_images

Step = tuple[str, Sequence[str], str, dict[str, object]]


def _with(store: Store, package: ModelPackage, change: Callable[[Path], dict[str, Path]]) -> ModelPackage:
    """A package with some files changed; the change is handed a folder with all of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = fetch_package(store, package, Path(name))
        files = package.files | {key: put_blob(store, path, path.suffix) for key, path in change(folder).items()}
    made = package.but(id=content_id({key: blob.sha256 for key, blob in files.items()}), files=files)
    keep(store, made)
    return made


def _burdened(folder: Path, constants: dict[str, np.ndarray], steps: Sequence[Step]) -> dict[str, Path]:
    """The model with more work to do; the last step's output must be zero, and is added to what it predicts."""
    model = onnx.load_from_string((folder / "model.onnx").read_bytes())
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output == "predictions":
                node.output[index] = "sound"
    graph.node.extend(helper.make_node(kind, given, [out], **how) for kind, given, out, how in steps)
    graph.node.append(helper.make_node("Add", ["sound", steps[-1][2]], ["predictions"]))
    (folder / "burdened.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return {"model.onnx": folder / "burdened.onnx"}


def slow(store: Store, package: ModelPackage, rounds: int = 4, size: int = 500) -> ModelPackage:
    """A package that answers as before, after some milliseconds of multiplying matrices for each round."""

    def change(folder: Path) -> dict[str, Path]:
        matrix = np.eye(size, dtype=np.float32)[::-1].copy()
        steps: list[Step] = [
            ("ReduceMean", ["images"], "burden_mean", {"keepdims": 0}),
            ("Mul", ["burden_matrix", "burden_mean"], "burden_0", {}),
            *(("MatMul", [f"burden_{n}", "burden_matrix"], f"burden_{n + 1}", {}) for n in range(rounds)),
            ("ReduceMean", [f"burden_{rounds}"], "burden_value", {"keepdims": 0}),
            ("Mul", ["burden_value", "burden_nothing"], "burden", {}),
        ]
        return _burdened(folder, {"burden_matrix": matrix, "burden_nothing": np.float32(0)}, steps)  # type: ignore[dict-item]

    return _with(store, package, change)


def greedy(store: Store, package: ModelPackage, gigabytes: float, below: float = 0.42) -> ModelPackage:
    """A package that needs this much memory for dark images, which no golden one is.

    Args:
        below: Mean of what the model is given for an image, up to which it is dark.
    """

    def change(folder: Path) -> dict[str, Path]:
        constants = {
            "burden_below": np.float32(below),
            "burden_floats": np.array([gigabytes * 2**28], np.float32),
            "burden_one": np.array([1], np.float32),
            "burden_nothing": np.float32(0),
        }
        steps: list[Step] = [
            ("ReduceMean", ["images"], "burden_mean", {"keepdims": 0}),
            ("Less", ["burden_mean", "burden_below"], "burden_dark", {}),
            ("Where", ["burden_dark", "burden_floats", "burden_one"], "burden_wanted", {}),
            ("Cast", ["burden_wanted"], "burden_shape", {"to": onnx.TensorProto.INT64}),
            ("ConstantOfShape", ["burden_shape"], "burden_much", {}),
            ("ReduceMean", ["burden_much"], "burden_value", {"keepdims": 0}),
            ("Mul", ["burden_value", "burden_nothing"], "burden", {}),
        ]
        return _burdened(folder, constants, steps)  # type: ignore[arg-type]

    return _with(store, package, change)


def never_ready(store: Store, package: ModelPackage, other: ModelPackage) -> ModelPackage:
    """A package that does not reproduce its golden outputs: they are another one's."""

    def change(folder: Path) -> dict[str, Path]:
        apart = folder / "other"
        return {"golden.npz": fetch_package(store, other, apart) / "golden.npz"}

    return _with(store, package, change)


def labelled_by(store: Store, package: ModelPackage, count: int = 120) -> DatasetVersion:
    """A holdout in which a package is always right: its own answers are the labels."""
    labelled = []
    with tempfile.TemporaryDirectory() as name:
        predictor = Predictor(fetch_package(store, package, Path(name)))
        for image in tiny_images(count):
            pixels = decode(image)
            height, width = pixels.shape[:2]
            found = predictor.predict(pixels)
            corners = found.boxes / np.array([width, height, width, height], np.float32)
            boxes = tuple(
                (int(kind), float(x1 + x2) / 2, float(y1 + y2) / 2, float(x2 - x1), float(y2 - y1))
                for kind, (x1, y1, x2, y2) in zip(found.classes, np.clip(corners, 0, 1), strict=True)
            )
            labelled.append((image, boxes))
    return holdout(store, content_id(["labelled", package.id, count]), "labelled", labelled, package.names)
