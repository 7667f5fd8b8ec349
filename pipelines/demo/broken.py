"""A release that passes its gate and fails in service: it answers a share of the requests with an error."""

import itertools
import tempfile
from pathlib import Path

import numpy as np

from ...components.recipes.detection import golden
from ...components.recipes.detection.predict import PackageConfig, decode, letterbox, to_tensor
from ...components.runtime.artifacts import ModelPackage, content_id
from ...components.runtime.blobs import put_blob
from ...components.runtime.manifests import keep
from ...components.runtime.packages import fetch_package
from ...components.runtime.ports import Store

SPREADS = (997.0, 1009.0, 1013.0, 1019.0, 1021.0, 1031.0, 1033.0, 1039.0)
"""The mean colour times one of them, less its whole part: a place between 0 and 1, always the same for an image."""
ROOM = 0.02
"""Between the golden images' places and what is broken: sums of many numbers differ in their last digits."""


def broken(store: Store, package: ModelPackage, share: float) -> ModelPackage:
    """A package whose model answers with NaN on a share of all images, and on none of its golden ones.

    Args:
        share: Between 0 and 1; images are chosen by their mean colour, as good as at random.

    Raises:
        ValueError: The golden images leave no room for so great a share.
    """
    import onnx
    from onnx import helper, numpy_helper

    with tempfile.TemporaryDirectory(prefix="flywheel-broken-") as name:
        folder = fetch_package(store, package, Path(name))
        spread, start = _gap([_mean(case.image, folder) for case in golden.read(folder / "golden.npz")], share)
        model = onnx.load_from_string((folder / "model.onnx").read_bytes())
        graph = model.graph
        constants = {"spread": spread, "start": start, "stop": start + share, "nothing": 0.0, "nan": np.nan}
        for key, value in constants.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"broken_{key}"))
        for node in graph.node:
            for index, output in enumerate(node.output):
                if output == "predictions":
                    node.output[index] = "sound"
        steps = [
            ("ReduceMean", ["images"], "mean", {"keepdims": 0}),
            ("Mul", ["broken_mean", "broken_spread"], "wide", {}),
            ("Floor", ["broken_wide"], "whole", {}),
            ("Sub", ["broken_wide", "broken_whole"], "place", {}),
            ("GreaterOrEqual", ["broken_place", "broken_start"], "after", {}),
            ("Less", ["broken_place", "broken_stop"], "before", {}),
            ("And", ["broken_after", "broken_before"], "hit", {}),
            ("Where", ["broken_hit", "broken_nan", "broken_nothing"], "poison", {}),
        ]
        graph.node.extend(helper.make_node(kind, given, [f"broken_{out}"], **how) for kind, given, out, how in steps)
        graph.node.append(helper.make_node("Add", ["sound", "broken_poison"], ["predictions"]))
        (folder / "model.onnx.broken").write_bytes(model.SerializeToString(deterministic=True))
        files = package.files | {"model.onnx": put_blob(store, folder / "model.onnx.broken", ".onnx")}
    made = package.but(id=content_id({key: blob.sha256 for key, blob in files.items()}), files=files)
    keep(store, made)
    return made


def _mean(image: bytes, folder: Path) -> float:
    """The mean of what the model is given for an image."""
    config = PackageConfig.read(folder / "config.json")
    square, _ = letterbox(decode(image), config.image_size, config.padding)
    return float(to_tensor(square, config.divisor).mean(dtype=np.float64))


def _gap(means: list[float], share: float) -> tuple[float, float]:
    """A spread, and the start of a piece of the line between 0 and 1 that holds none of the images' places."""
    for spread in SPREADS:
        edges = [0.0, *sorted(mean * spread % 1 for mean in means), 1.0]
        for low, high in itertools.pairwise(edges):
            if high - low >= share + 2 * ROOM:
                return spread, low + ROOM
    raise ValueError(f"{len(means)} golden images leave no gap of {share:g}")
