"""Pre- and post-processing of a packaged detector, without torch but where torch is the judge."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.recipes.detection.offline import confine
from kfp_flywheel.components.recipes.detection.predict import (
    Floats,
    Image,
    PackageConfig,
    Predictor,
    decode,
    letterbox,
    place_back,
    postprocess,
    suppress,
)
from kfp_flywheel.components.runtime.errors import Corrupt, PlatformError, UserError
from onnx import TensorProto, helper, numpy_helper

Make = Callable[..., Predictor]
CONFIG = PackageConfig(names=("cat", "dog"), image_size=64)


@pytest.fixture(scope="module", autouse=True)
def _confined(tmp_path_factory: pytest.TempPathFactory) -> None:
    confine(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture
def answering(tmp_path: Path) -> Make:
    """Packages whose model always gives the same raw predictions (6, n), whatever it is shown."""

    def make(raw: Floats, embedding: Floats | None = None, config: PackageConfig = CONFIG) -> Predictor:
        outputs = {
            "predictions": raw[None],
            "embedding": np.ones((1, 3), np.float32) if embedding is None else embedding[None],
        }
        constants = [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value.astype(np.float32)))
            for name, value in outputs.items()
        ]
        graph = helper.make_graph(
            constants,
            "constant",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, config.image_size, config.image_size])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in outputs.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, tmp_path / "model.onnx")
        (tmp_path / "config.json").write_text(config.line())
        return Predictor(tmp_path)

    return make


def grey(height: int, width: int) -> Image:
    return np.full((height, width, 3), 128, np.uint8)


def raw_boxes(*rows: tuple[float, ...]) -> Floats:
    return np.array(rows, np.float32).T


def test_boxes_come_back_in_pixels_of_the_image(answering: Make) -> None:
    # 128 × 64 is halved and padded by 16 pixels above and below.
    seen = answering(raw_boxes((32, 32, 20, 10, 0.9, 0.1), (60, 32, 20, 10, 0.2, 0.6))).predict(grey(64, 128))
    assert seen.boxes.tolist() == [[44, 22, 84, 42], [100, 22, 128, 42]]  # the second is clipped
    assert seen.scores.tolist() == pytest.approx([0.9, 0.6])
    assert seen.classes.tolist() == [0, 1]
    assert [values.dtype for values in (seen.boxes, seen.scores, seen.classes)] == [np.float32, np.float32, np.int64]


def test_overlapping_boxes_of_a_class_are_one_detection_and_of_two_classes_two(answering: Make) -> None:
    same = (32, 32, 20, 20)
    predictor = answering(raw_boxes((*same, 0.9, 0.1), (*same, 0.8, 0.1), (*same, 0.1, 0.7)))
    assert predictor.predict(grey(64, 64)).classes.tolist() == [0, 1]


def test_no_box_above_the_limit_gives_none_with_an_embedding(answering: Make) -> None:
    seen = answering(raw_boxes((32, 32, 20, 20, 0.25, 0.1))).predict(grey(64, 64))  # not higher than 0.25
    assert len(seen) == 0
    assert (seen.boxes.shape, seen.scores.shape, seen.classes.shape) == ((0, 4), (0,), (0,))
    assert seen.classes.dtype == np.int64
    assert seen.embedding.tolist() == [1, 1, 1]


def test_the_limit_can_be_asked_for(answering: Make) -> None:
    predictor = answering(raw_boxes((32, 32, 20, 20, 0.2, 0.1)))
    assert len(predictor.predict(grey(64, 64))) == 0
    assert len(predictor.predict(grey(64, 64), conf=0.1)) == 1


def test_the_best_detections_stay_when_there_are_too_many(answering: Make) -> None:
    rows = [(8 * x + 4, 8 * y + 4, 6, 6, (8 * y + x + 40) / 128, 0) for x in range(8) for y in range(8)]
    seen = answering(raw_boxes(*rows), config=CONFIG.but(max_det=5)).predict(grey(64, 64))
    assert seen.scores.tolist() == [(103 - n) / 128 for n in range(5)]


def test_suppression_looks_at_the_best_candidates_only() -> None:
    rows = [(10.0 * n, 32, 6, 6, 0.3 + n / 100, 0) for n in range(6)]
    config = CONFIG.but(max_candidates=2)
    assert postprocess(raw_boxes(*rows), config, 0.25)[1].tolist() == pytest.approx([0.35, 0.34])


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (63, 65), (64, 64), (2000, 1500)])
def test_any_size_can_be_asked(answering: Make, size: tuple[int, int]) -> None:
    seen = answering(raw_boxes((32, 32, 64, 64, 0.9, 0.1))).predict(grey(*size))
    assert seen.boxes.tolist() == [pytest.approx([0, 0, size[1], size[0]])]


@pytest.mark.parametrize(
    ("row", "column", "value"), [(0, 0, np.nan), (3, 1, np.inf), (4, 0, np.nan), (5, 1, np.inf), (5, 1, -np.inf)]
)
def test_a_model_that_answers_nonsense_is_an_error_not_silence(
    answering: Make, row: int, column: int, value: float
) -> None:
    raw = raw_boxes((32, 32, 20, 20, 0.1, 0.1), (32, 32, 20, 20, 0.1, 0.1))
    raw[row, column] = value
    with pytest.raises(PlatformError, match="predictions has 1 of 12 values that are not finite"):
        answering(raw).predict(grey(64, 64))


def test_an_embedding_that_is_nonsense_is_an_error(answering: Make) -> None:
    raw = raw_boxes((32, 32, 20, 20, 0.9, 0.1))
    with pytest.raises(PlatformError, match="embedding has 2 of 3 values"):
        answering(raw, np.array([1, np.nan, -np.inf])).predict(grey(64, 64))


def test_what_is_no_image_of_three_channels_is_refused(answering: Make) -> None:
    predictor = answering(raw_boxes((32, 32, 20, 20, 0.9, 0.1)))
    wrong: tuple[Any, ...] = (
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        grey(0, 8),
    )
    for image in wrong:
        with pytest.raises(UserError, match="shape"):
            predictor.predict(image)


def test_a_package_that_does_not_fit_together_is_not_opened(answering: Make, tmp_path: Path) -> None:
    answering(raw_boxes((32, 32, 20, 20, 0.9, 0.1)))
    good = (tmp_path / "model.onnx").read_bytes()
    for update, match in (({"image_size": 96}, "96 pixels"), ({"names": ("cat",)}, "1 classes")):
        (tmp_path / "config.json").write_text(CONFIG.but(**update).line())
        with pytest.raises(Corrupt, match=match):
            Predictor(tmp_path)
    (tmp_path / "config.json").write_text(CONFIG.line())
    for content in (good[: len(good) // 2], b"", b"not a model"):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(Corrupt, match=r"cannot|can load|takes|gives"):
            Predictor(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(Corrupt, match="No such file"):
        Predictor(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"names":["a"],"image_size":64,"version":"detection.v2"}'])
def test_a_config_of_another_version_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Corrupt, match=r"config\.json is no PackageConfig"):
        PackageConfig.read(tmp_path / "config.json")


@pytest.mark.parametrize("kind", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_files_are_decoded_to_three_channels_of_eight_bits(kind: str, shape: tuple[int, ...]) -> None:
    ok, encoded = cv2.imencode(kind, np.full(shape, 200, np.uint8))
    assert ok
    image = decode(encoded.tobytes())
    assert (image.shape, image.dtype) == ((5, 7, 3), np.uint8)
    assert np.abs(image.astype(int) - 200).max() <= 2


def test_sixteen_bits_become_eight_and_exif_turns_the_image() -> None:
    from PIL import Image as Pillow

    ok, encoded = cv2.imencode(".png", np.full((4, 6, 3), 40_000, np.uint16))
    assert ok
    assert decode(encoded.tobytes())[0, 0].tolist() == [156] * 3
    turned, upright = io.BytesIO(), Pillow.new("RGB", (6, 4))
    exif = upright.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    upright.save(turned, "JPEG", exif=exif)
    assert decode(turned.getvalue()).shape == (6, 4, 3)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff\xe0 cut off", b"a" * 1000])
def test_what_is_no_image_is_the_askers_fault(content: bytes) -> None:
    with pytest.raises(UserError, match="bytes"):
        decode(content)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), size=st.sampled_from([32, 96, 640]))
@settings(deadline=None)  # the first example imports torch
def test_letterbox_is_ultralytics_for_every_shape(height: int, width: int, size: int) -> None:
    import torch
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.ops import scale_boxes

    rng = np.random.default_rng([height, width])
    if height * width > 250_000:  # the geometry matters, not the time to scale much
        height, width = max(height // 10, 1), max(width // 10, 1)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    ours, placement = letterbox(image, size, 114)
    assert np.array_equal(ours, LetterBox((size, size), auto=False)(image=image))
    boxes = np.sort(rng.uniform(-5, size + 5, (9, 2, 2)), 1).reshape(9, 4).astype(np.float32)
    theirs = scale_boxes((size, size), torch.from_numpy(boxes.copy()), (height, width)).numpy()
    np.testing.assert_allclose(place_back(boxes, placement, width, height), theirs, rtol=1e-5, atol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 400), iou=st.sampled_from([0.1, 0.45, 0.7, 1.0]))
@settings(deadline=None)
def test_suppression_is_torchvisions(seed: int, count: int, iou: float) -> None:
    import torch
    from torchvision.ops import nms

    rng = np.random.default_rng(seed)
    # Whole pixels and few scores: many exact ties, equal boxes and empty ones.
    boxes = np.sort(rng.integers(0, 20, (count, 2, 2)), 1).reshape(count, 4).astype(np.float32)
    scores = rng.integers(1, 9, count).astype(np.float32) / 8
    theirs = nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).numpy()
    for limit in (300, 7):  # more boxes than one block, and fewer than there are
        assert suppress(boxes, scores, iou, limit).tolist() == theirs[:limit].tolist()
