"""Build a model package: the exported model, its golden inputs, and the reference that monitoring compares with."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ...runtime.artifacts import Sample
from ...runtime.errors import DataError
from . import golden
from .export import Exported, export
from .features import FEATURES, features
from .predict import Detections, Image, PackageConfig, Predictor, decode
from .reference import Reference

GOLDEN_IMAGES = 8


def build(
    model: torch.nn.Module, config: PackageConfig, holdout: Sequence[tuple[bytes, Sample]], folder: Path
) -> dict[str, Path]:
    """Write the four files of a package, and check that the exported model does what the trained one does.

    The same weights and images give the same bytes on the same kind of processor, with any number of threads.

    Args:
        model: The trained ultralytics DetectionModel (fp32, CPU); it is left as it is.
        config: Class names and image size, and how to pre- and post-process.
        holdout: Encoded images that the model was not trained on, in a fixed order.
        folder: Where to write.

    Returns:
        By name, the paths of model.onnx, config.json, golden.npz and reference.npz.

    Raises:
        DataError: The holdout has no images.
        PlatformError: The exported model does not reproduce the trained one, or gives values that are not finite.
    """
    if not holdout:
        raise DataError("the holdout has 0 images, and a package needs 1 at least.", "give the data set a test split")
    export(model, folder, config)
    predictor = Predictor(folder)
    reference = refer(predictor, holdout)
    np.savez(folder / "reference.npz", **reference._asdict())
    trained = Exported(model, fuse=False)
    diverse = golden.diverse(reference.embeddings, np.diff(reference.offsets), 3 * GOLDEN_IMAGES)
    with _one_thread():
        cases = golden.clearest((ask(trained, config, holdout[index][0]) for index in diverse), GOLDEN_IMAGES)
    golden.write(folder / "golden.npz", cases)
    golden.check(predictor, folder)
    return {name: folder / name for name in ("model.onnx", "config.json", "golden.npz", "reference.npz")}


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch's sums depend on the number of threads in their last bits, and the package's id on those."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def refer(predictor: Predictor, holdout: Sequence[tuple[bytes, Sample]]) -> Reference:
    """Run a package over the holdout; one thread an image, so that the numbers do not depend on how many there are."""

    def one(item: tuple[bytes, Sample]) -> tuple[Detections, dict[str, float]]:
        image = decode(item[0])
        found = predictor.predict(image)
        return found, features(image, found)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(one, holdout))
    classes = len(predictor.config.names)
    return Reference(
        samples=np.array([sample.image.sha256 for _, sample in holdout]),
        feature_names=np.array(FEATURES),
        features=np.array([list(values.values()) for _, values in found], np.float32),
        scores=np.concatenate([seen.scores for seen, _ in found]),
        offsets=np.cumsum([0, *(len(seen) for seen, _ in found)], dtype=np.int64),
        class_counts=np.stack([np.bincount(seen.classes, minlength=classes) for seen, _ in found]),
        embeddings=np.stack([seen.embedding for seen, _ in found]),
    )


def ask(trained: Exported, config: PackageConfig, content: bytes) -> golden.Case:
    """Ask the trained model, in torch and through ultralytics' own pre- and post-processing, not ours."""
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import scale_boxes

    image: Image = decode(content)
    side = config.image_size
    square = LetterBox((side, side), auto=False, padding_value=config.padding)(image=image)
    planes = torch.from_numpy(np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1)))
    with torch.inference_mode():
        raw, embedding = trained(planes[None].float() / config.divisor)
        conf = golden.clear_conf(raw[0].numpy(), config)
        found = non_max_suppression(raw.clone(), conf, config.iou, max_det=config.max_det, nc=len(config.names))[0]
        boxes = scale_boxes((side, side), found[:, :4], image.shape[:2])
    scores, classes = found[:, 4].numpy(), found[:, 5].numpy().astype(np.int64)
    return golden.Case(content, conf, Detections(boxes.numpy(), scores, classes, embedding[0].numpy()))
