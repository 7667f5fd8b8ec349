"""Export a trained detector to ONNX, with its pooled features as a second output."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.errors import PlatformError, UserError
from .predict import PackageConfig

OPSET = 18


class Exported(nn.Module):  # type: ignore[misc]  # torch is not type-checked
    """What the package's model computes.

    The embedding is what the detection head is given: each of its feature maps averaged over the image, one after
    another. That is defined for every architecture, and holds coarse levels (what is there) as well as fine ones
    (texture, noise).

    Args:
        model: A trained ultralytics DetectionModel. It is copied.
        fuse: Fold the copy's batch norms into its convolutions.

    Raises:
        UserError: It does not end in a detection head.
    """

    def __init__(self, model: nn.Module, fuse: bool = True) -> None:
        super().__init__()
        from ultralytics.nn.modules.head import Detect

        head = getattr(model, "model", [None])[-1]
        if not isinstance(head, Detect) or type(head).__name__ not in ("Detect", "v10Detect"):
            raise UserError(
                f"an architecture that ends in {type(head).__name__} cannot be exported: only detection heads are.",
                "set architecture to a detection model, for example yolo11n",
            )
        self.network: Any = copy.deepcopy(model).float().cpu()
        self.network.eval()
        self.network.requires_grad_(False)
        head = self.network.model[-1]
        head.end2end = False  # one kind of output for all architectures; suppression is ours
        if fuse:
            self.network.fuse(verbose=False)
        head.shape = None  # anchors of another image size are made anew
        head.register_forward_pre_hook(self._keep)
        self._maps: list[Tensor] = []

    def _keep(self, head: nn.Module, inputs: tuple[list[Tensor]]) -> None:
        self._maps = list(inputs[0])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict.

        Args:
            images: (b, 3, size, size), red, green, blue, between 0 and 1.

        Returns:
            Predictions (b, 4 + classes, n), boxes as centre and size in pixels; embedding (b, d).
        """
        given = self.network(images)
        predictions = given if isinstance(given, Tensor) else given[0]
        embedding = torch.cat([level.mean((2, 3)) for level in self._maps], 1)
        self._maps = []
        return predictions, embedding


def export(model: nn.Module, folder: Path, config: PackageConfig) -> None:
    """Write `model.onnx` (fp32, one image at a time) and `config.json`; the same weights give the same bytes.

    Args:
        model: A trained ultralytics DetectionModel; it is left as it is.
        folder: Where to write.
        config: Its names and image size must be the model's.

    Raises:
        UserError: The model is no detector.
        PlatformError: It has another number of classes than the config, or the result is no valid ONNX model.
    """
    import onnx
    import onnxslim

    exported = Exported(model)
    classes = int(exported.network.model[-1].nc)
    if classes != len(config.names):
        raise PlatformError(f"the model has {classes} classes, and the config {len(config.names)} names.")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "model.onnx"
    with _quiet(), torch.inference_mode():
        torch.onnx.export(
            exported,
            (torch.zeros(1, 3, config.image_size, config.image_size),),
            str(target),
            opset_version=OPSET,
            input_names=["images"],
            output_names=["predictions", "embedding"],
            dynamo=False,
        )
        slim = onnxslim.slim(onnx.load(target))
    if slim is None:
        raise PlatformError("onnxslim gave no model.")
    _strip(slim)
    try:
        onnx.checker.check_model(slim)
    except onnx.checker.ValidationError as error:
        raise PlatformError(f"the export is not a valid ONNX model: {error}.") from error
    target.write_bytes(slim.SerializeToString(deterministic=True))
    (folder / "config.json").write_text(config.to_json().decode() + "\n")


def _strip(model: Any) -> None:
    """Take out what says where and by what it was made: paths, stack traces, notes."""
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.producer_name, model.producer_version, model.graph.name = "kfp-flywheel", "", "detector"
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of constants that a fixed image size makes on purpose, and of its own age."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxslim", "ONNXSlim")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
