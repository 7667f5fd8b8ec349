"""A model that is worse in silence: the demo's detector with noise on its weights, and how soon a replay shows it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from kfp_flywheel.components.recipes.detection.agreement import accuracy
from kfp_flywheel.components.recipes.detection.evaluate import score
from kfp_flywheel.components.recipes.detection.predict import Image, Predictor
from kfp_flywheel.components.runtime.artifacts import Sample
from onnx import numpy_helper

from .canary import replays
from .figures import Figure
from .traffic import Scene, detector, labelled

DROP, IMAGES, SEED = 0.1, 400, 5
Labelled = Sequence[tuple[Image, Sample]]


def worse(amount: float) -> Predictor:
    """The detector, each of its weights moved at random by a share of its tensor's spread."""
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory(prefix="flywheel-worse-") as name:
        folder = Path(name)
        (folder / "config.json").write_bytes((detector() / "config.json").read_bytes())
        model = onnx.load_from_string((detector() / "model.onnx").read_bytes())
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim == 4:
                noisy = values + rng.normal(0, amount * values.std(), values.shape)
                tensor.CopyFrom(numpy_helper.from_array(noisy.astype(values.dtype), tensor.name))
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return Predictor(folder)


def map50(predictor: Predictor, images: Labelled) -> float:
    found = [predictor.predict(image, 0.001) for image, _ in images]
    return score(found, [sample for _, sample in images], predictor.config.names).map50 or 0.0


def scores(predictor: Predictor, images: Labelled) -> npt.NDArray[np.float64]:
    """F1 of each image as it is served; 1 where nothing is labelled and nothing seen."""
    values = (accuracy(predictor.predict(image), sample) for image, sample in images)
    return np.array([1.0 if value is None else value for value in values])


def figures() -> list[Figure]:
    images = labelled(Scene(), IMAGES, SEED)
    good = Predictor(detector())
    best, low, high = map50(good, images), 0.0, 1.0
    for _ in range(11):
        amount = (low + high) / 2
        low, high = (amount, high) if best - map50(worse(amount), images) < DROP else (low, amount)
    bad = worse(high)
    lost = map50(bad, images) - best
    return [replays(scores(bad, images) - scores(good, images), lost)]


if __name__ == "__main__":
    from .figures import publish

    print(f"seed {SEED}")
    publish("shadow", figures())
