"""A real ONNX detector of a few kilobytes, packaged as train packages: for tests that need a package."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
from kfp_flywheel.components.recipes.detection import golden
from kfp_flywheel.components.recipes.detection.predict import PackageConfig, Predictor
from kfp_flywheel.components.runtime.artifacts import (
    Checkpoint,
    Epoch,
    Lineage,
    ModelPackage,
    Release,
    content_id,
)
from kfp_flywheel.components.runtime.blobs import put_blob
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.ports import Store
from onnx import TensorProto, helper, numpy_helper

SIZE = 64
NAMES = ("a", "b")
LINEAGE = Lineage(code="test", image="local", run="test")


def tiny_model(names: tuple[str, ...] = NAMES, size: int = SIZE, bias: float = 1.0) -> onnx.ModelProto:
    """Three fixed boxes; each class score is a sigmoid of the mean colour. `bias` makes it surer, and another model.

    Its outputs depend on the image, so a wrong channel order or scale is seen.
    """
    count, classes = 3, len(names)
    rng = np.random.default_rng(0)
    boxes = np.array([[0.25, 0.25, 0.3, 0.3], [0.7, 0.4, 0.2, 0.4], [0.5, 0.8, 0.5, 0.2]], np.float32).T[None] * size
    weights = rng.normal(0, 3, (3, classes * count)).astype(np.float32)
    constants = {
        "boxes": boxes,
        "weights": weights,
        "bias": np.full(classes * count, bias, np.float32),
        "pooled_shape": np.array([1, 3], np.int64),
        "scores_shape": np.array([1, classes, count], np.int64),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "pooled_shape"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "weights", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["flat"]),
        helper.make_node("Reshape", ["flat", "scores_shape"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["predictions"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size, size])],
        [
            helper.make_tensor_value_info("predictions", TensorProto.FLOAT, [1, 4 + classes, count]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def tiny_images(count: int = 4, size: int = SIZE) -> list[bytes]:
    """Encoded images of plain colours and noise, the same ones each time; not square, so that padding matters."""
    rng = np.random.default_rng(1)
    images = [
        np.clip(rng.uniform(0, 255, 3) + rng.normal(0, 20, (size, size + 20, 3)), 0, 255).astype(np.uint8)
        for _ in range(count)
    ]
    return [cv2.imencode(".png", image)[1].tobytes() for image in images]


def tiny_package(
    store: Store, names: tuple[str, ...] = NAMES, size: int = SIZE, bias: float = 1.0, dataset: str = "data"
) -> ModelPackage:
    """Package a tiny detector into a store, its manifest kept there. Another `bias` gives another package."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(tiny_model(names, size, bias), str(folder / "model.onnx"))
        config = PackageConfig(names=names, image_size=size)
        (folder / "config.json").write_text(config.to_json().decode() + "\n")
        predictor, images = Predictor(folder), tiny_images(size=size)
        cases = [golden.Case(image, config.conf, predictor.predict(golden.decode(image))) for image in images]
        golden.write(folder / "golden.npz", cases)
        np.savez(folder / "reference.npz", scores=np.zeros(0, np.float32))
        files = {path.name: put_blob(store, path, path.suffix) for path in sorted(folder.iterdir())}
    package = ModelPackage(
        id=content_id({name: blob.sha256 for name, blob in files.items()}),
        lineage=LINEAGE,
        family="detection",
        names=names,
        dataset=dataset,
        files=files,
        checkpoint=Checkpoint(blob=files["model.onnx"], digest="tiny"),
        curve=(Epoch(epoch=1, seconds=0.1, metrics={}),),
        tracking_run="tiny",
    )
    keep(store, package)
    return package


def tiny_release(store: Store, version: str = "1", bias: float = 1.0, model: str = "detector") -> Release:
    """Package a tiny detector and give a release of it."""
    package = tiny_package(store, bias=bias)
    return Release(
        id=content_id([model, version, package.id]),
        lineage=LINEAGE,
        model=model,
        version=version,
        package=package.id,
        package_uri=keep(store, package),
        dataset=package.dataset,
        report="report",
    )
