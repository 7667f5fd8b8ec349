"""Model packages: what is exported is what was trained, and a package that does something else is refused."""

import copy
import hashlib
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from kfp_flywheel.components.recipes.detection import golden
from kfp_flywheel.components.recipes.detection.architectures import find
from kfp_flywheel.components.recipes.detection.features import FEATURES, features
from kfp_flywheel.components.recipes.detection.offline import confine
from kfp_flywheel.components.recipes.detection.predict import (
    Detections,
    Image,
    PackageConfig,
    Predictor,
    decode,
    letterbox,
    postprocess,
)
from kfp_flywheel.components.runtime.artifacts import Blob, Sample
from kfp_flywheel.components.runtime.errors import Corrupt, DataError, PlatformError, UserError

Holdout = list[tuple[bytes, Sample]]
CONFIG = PackageConfig(names=tuple("0123456789"), image_size=160)
SIZES = ((160, 160), (120, 200), (317, 95), (60, 60), (480, 333), (90, 400))


@pytest.fixture(scope="session")
def holdout(digits: Path) -> Holdout:
    """Forty photographs with digits in six shapes, hardly one of them square."""
    found: Holdout = []
    for number, path in enumerate(sorted((digits.parent / "images" / "test").iterdir())):
        height, width = SIZES[number % len(SIZES)]
        resized = cv2.resize(decode(path.read_bytes()), (width, height))
        content = cv2.imencode(".png", resized)[1].tobytes()
        blob = Blob(uri="", sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        found.append(
            (content, Sample(path=path.name, image=blob, width=width, height=height, boxes=(), split="test", group=""))
        )
    return found


def lively(architecture: str, images: list[Image]) -> Any:
    """A detector with random weights whose answers are as varied as a trained one's: batch norms that know the images,
    and a head whose scores go from 0 to 1 and whose boxes overlap."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(7)
    model = DetectionModel(str(find(architecture)), nc=len(CONFIG.names), verbose=False)
    squares = np.stack([letterbox(image, CONFIG.image_size, CONFIG.padding)[0] for image in images])
    batch = torch.from_numpy(squares[..., ::-1].transpose(0, 3, 1, 2).copy()).float() / 255
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(batch)
        raw = model.eval()(batch)[1]
        for branch, values, mean, deviation in (("cv2", "boxes", 0.0, 1.0), ("cv3", "scores", -3.5, 1.2)):
            gain = deviation / raw[values].std()
            for level in getattr(model.model[-1], branch):
                level[-1].weight *= gain
                level[-1].bias += mean - level[-1].bias - gain * (raw[values].mean() - level[-1].bias)
    return model


@pytest.fixture(scope="session")
def models(holdout: Holdout, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    confine(tmp_path_factory.mktemp("ultralytics"))
    images = [decode(content) for content, _ in holdout[:20]]
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same weights on every machine
    try:
        return {name: lively(name, images) for name in ("narrow", "yolo11n")}
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def package(models: dict[str, Any], holdout: Holdout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the narrow architecture. Read only."""
    from kfp_flywheel.components.recipes.detection.package import build

    folder = tmp_path_factory.mktemp("package")
    files = build(models["narrow"], CONFIG, holdout, folder)
    assert sorted(files) == ["config.json", "golden.npz", "model.onnx", "reference.npz"]
    assert sorted(folder.iterdir()) == sorted(files.values())
    return folder


def ultralytics_predict(model: Any, images: list[Image]) -> list[Any]:
    import torch
    from ultralytics.models.yolo.detect import DetectionPredictor

    threads = torch.get_num_threads()
    settings = {"imgsz": 160, "conf": 0.25, "iou": 0.7, "rect": False, "verbose": False, "save": False, "device": "cpu"}
    try:
        predictor = DetectionPredictor(overrides=settings)
        return [predictor(image, model=model)[0].boxes for image in images]
    finally:
        torch.set_num_threads(threads)  # ultralytics sets its own


def mismatches(predictor: Predictor, theirs: list[Any], images: list[Image]) -> tuple[int, int]:
    """Detections in all, and how many have no partner of the same class, IoU ≥ .99 and score ± 1e-3.

    A box in the padding is clipped to nothing, and has no IoU; its corners must agree within 0.02 pixels instead.
    """
    import torch
    from scipy.optimize import linear_sum_assignment
    from torchvision.ops import box_iou

    count = wrong = 0
    for image, boxes in zip(images, theirs, strict=True):
        ours = predictor.predict(image)
        overlaps = box_iou(torch.from_numpy(ours.boxes), boxes.xyxy).numpy()
        same_class = ours.classes[:, None] == boxes.cls.numpy()[None]
        same_score = np.abs(ours.scores[:, None] - boxes.conf.numpy()[None]) <= 1e-3
        empty = (boxes.xyxy.numpy()[:, 2:] - boxes.xyxy.numpy()[:, :2]).prod(1) == 0
        corners = np.abs(ours.boxes[:, None] - boxes.xyxy.numpy()[None]).max(2) <= 0.02
        alike = np.where(empty[None], corners, overlaps >= 0.99) & same_class & same_score
        pairs = alike[linear_sum_assignment(-alike.astype(float))].sum()
        count += int((~empty).sum())
        wrong += max(len(ours), len(boxes)) - int(pairs)
    return count, wrong


@pytest.mark.parametrize("architecture", ["narrow", "yolo11n"])
def test_a_package_detects_what_ultralytics_detects(
    architecture: str, models: dict[str, Any], package: Path, holdout: Holdout, tmp_path: Path
) -> None:
    from kfp_flywheel.components.recipes.detection.export import export

    folder = package if architecture == "narrow" else tmp_path
    if folder == tmp_path:
        export(models[architecture], folder, CONFIG)
    images = [decode(content) for content, _ in holdout]
    theirs = ultralytics_predict(models[architecture], images)
    scores = np.concatenate([boxes.conf.numpy() for boxes in theirs])
    assert np.std(scores) > 0.1  # not one score for all, as fresh weights give
    count, wrong = mismatches(Predictor(folder), theirs, images)
    assert count >= 900
    assert wrong == 0


def test_the_same_weights_give_the_same_bytes_in_silence_and_stay_as_they_are(
    package: Path, models: dict[str, Any], holdout: Holdout, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch
    from kfp_flywheel.components.recipes.detection.package import build

    model = copy.deepcopy(models["narrow"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads % 2 + 1)  # another number: it changes the last bits of torch's sums
    capfd.readouterr()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            files = build(model, CONFIG, holdout, tmp_path / "again")
        assert torch.get_num_threads() == threads % 2 + 1
    finally:
        torch.set_num_threads(threads)
    assert capfd.readouterr() == ("", "")
    for name, path in files.items():
        assert path.read_bytes() == (package / name).read_bytes(), name
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(bool((value == before[name]).all()) for name, value in model.state_dict().items())


def test_files_tell_nothing_of_the_machine(package: Path) -> None:
    for path in package.iterdir():
        content = path.read_bytes()
        for secret in (str(Path.home()), sys.prefix, str(Path.cwd()), "site-packages", ".py", str(package)):
            assert secret.encode() not in content, path.name
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_only_a_detector_with_its_names_is_exported(models: dict[str, Any], holdout: Holdout, tmp_path: Path) -> None:
    from kfp_flywheel.components.recipes.detection.export import export
    from kfp_flywheel.components.recipes.detection.package import build
    from torch import nn
    from ultralytics.nn.tasks import ClassificationModel

    with pytest.raises(UserError, match="ends in Classify"):
        export(ClassificationModel("yolo11n-cls.yaml", nc=10, verbose=False), tmp_path, CONFIG)
    with pytest.raises(UserError, match="only detection heads"):
        export(nn.Conv2d(3, 3, 1), tmp_path, CONFIG)
    with pytest.raises(PlatformError, match="10 classes, and the config 2 names"):
        export(models["narrow"], tmp_path, CONFIG.but(names=("a", "b")))
    with pytest.raises(DataError, match="0 images"):
        build(models["narrow"], CONFIG, [], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_embedding_is_what_the_head_is_given(package: Path, models: dict[str, Any], holdout: Holdout) -> None:
    import torch

    image = decode(holdout[0][0])  # 160 × 160: nothing to scale
    tensor = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())[None].float() / 255
    with torch.no_grad():
        maps = models["narrow"].eval()(tensor)[1]["feats"]
    assert len(maps) == 2
    expected = np.concatenate([level[0].numpy().mean((1, 2)) for level in maps])
    np.testing.assert_allclose(Predictor(package).predict(image).embedding, expected, rtol=1e-3, atol=1e-4)


def test_the_reference_is_what_the_package_does_on_the_holdout(package: Path, holdout: Holdout) -> None:
    with np.load(package / "reference.npz", allow_pickle=False) as stored:
        reference = {name: stored[name] for name in stored.files}
    assert reference["samples"].tolist() == [sample.image.sha256 for _, sample in holdout]
    assert tuple(reference["feature_names"]) == FEATURES
    assert reference["features"].shape == (len(holdout), len(FEATURES))
    assert reference["class_counts"].shape == (len(holdout), 10)
    predictor = Predictor(package)
    for index in (0, 5, len(holdout) - 1):
        image = decode(holdout[index][0])
        seen = predictor.predict(image)
        start, end = reference["offsets"][index : index + 2]
        assert np.array_equal(reference["scores"][start:end], seen.scores)
        assert reference["class_counts"][index].tolist() == [int((seen.classes == kind).sum()) for kind in range(10)]
        assert np.array_equal(reference["embeddings"][index], seen.embedding)
        values = np.array(list(features(image, seen).values()), np.float32)
        assert np.array_equal(reference["features"][index], values, equal_nan=True)


class Wrong(Predictor):
    """A package's predictor with something wrong on the way in or out."""

    def __init__(self, folder: Path, **config: Any) -> None:
        super().__init__(folder)
        self.config = self.config.but(**config)

    def noisy(self, seed: int, score: float, pixels: float) -> "Wrong":
        """Change all of the model's answers a little: scores by a share, corners by pixels of its input."""
        run, rng = self._run, np.random.default_rng(seed)

        def changed(tensor: Any) -> Any:
            raw, embedding = run(tensor)
            raw = raw.copy()
            raw[0, :4] += rng.uniform(-pixels, pixels, raw[0, :4].shape).astype(np.float32)
            raw[0, 4:] *= 1 + rng.uniform(-score, score, raw[0, 4:].shape).astype(np.float32)
            return raw, embedding

        self._run = changed
        return self


class Swapped(Predictor):
    def predict(self, image_bgr: Image, conf: float | None = None) -> Detections:
        return super().predict(np.ascontiguousarray(image_bgr[..., ::-1]), conf)


def test_golden_inputs_ask_for_detections(package: Path) -> None:
    cases = golden.read(package / "golden.npz")
    assert len(cases) == 8
    assert len({case.image for case in cases}) == 8
    assert all(len(case.expected) >= 4 and case.conf < 1 for case in cases)


def test_rounding_errors_are_no_alarm(package: Path) -> None:
    for seed in range(5):  # fifty times what torch and ONNX Runtime differ by
        golden.check(Wrong(package).noisy(seed, 5e-5, 0.005), package)


@pytest.mark.parametrize(
    "predictor",
    [
        lambda folder: Wrong(folder).noisy(0, 0.02, 0),
        lambda folder: Wrong(folder).noisy(0, 0, 1.0),
        lambda folder: Wrong(folder, padding=0),
        lambda folder: Wrong(folder, divisor=256),
        lambda folder: Wrong(folder, iou=0.5),
        lambda folder: Wrong(folder, class_offset=1),
        Swapped,
    ],
    ids=["scores", "boxes", "padding", "divisor", "iou", "class offset", "channels"],
)
def test_a_predictor_that_does_something_else_is_refused(package: Path, predictor: Callable[[Path], Predictor]) -> None:
    with pytest.raises(PlatformError, match=r"golden image . of 8 is not reproduced: "):
        golden.check(predictor(package), package)


@pytest.mark.parametrize("part", ["first", "last"])
def test_a_model_with_other_weights_is_refused(package: Path, tmp_path: Path, part: str) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(package / "model.onnx")
    kernels = [weights for weights in model.graph.initializer if len(weights.dims) == 4 and weights.dims[1] > 1]
    chosen = kernels[0 if part == "first" else -1]
    values = numpy_helper.to_array(chosen) * np.float32(1.01)  # one layer, one per cent
    chosen.CopyFrom(numpy_helper.from_array(values, chosen.name))
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "config.json").write_bytes((package / "config.json").read_bytes())
    with pytest.raises(PlatformError, match="is not reproduced"):
        golden.check(Predictor(tmp_path), package)


def test_damaged_golden_inputs_are_named(package: Path, tmp_path: Path) -> None:
    target = tmp_path / "golden.npz"
    good = (package / "golden.npz").read_bytes()
    damages = [b"", b"not a file of arrays", good[: len(good) // 2], good[:-100]]
    for content in damages:
        target.write_bytes(content)
        with pytest.raises(Corrupt, match=r"golden\.npz does not hold golden inputs"):
            golden.check(Predictor(package), tmp_path)
    np.savez(target, offsets=np.array([{"a": "pickle"}], dtype=object))
    with pytest.raises(Corrupt, match="pickle"):
        golden.read(target)
    np.savez(target, offsets=np.zeros(1, np.int64))
    with pytest.raises(Corrupt, match="holds no golden inputs"):
        golden.read(target)
    target.unlink()
    with pytest.raises(Corrupt, match="No such file"):
        golden.read(target)


def seen(*rows: tuple[float, float, float, float, float, int], embedding: float = 1.0) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), np.full(4, embedding, np.float32))


A, B = (0, 0, 40, 40, 0.9, 1), (50, 50, 90, 90, 0.6, 0)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (seen(A, B), None),
        (seen(B, A), None),
        (seen((0, 0, 40, 40.3, 0.9008, 1), B), None),
        (seen(A, B, embedding=1.0005), None),
        (
            seen((0, 0, 40, 41, 0.9, 1), B),
            r"detection 1 \(one, score 0.9000\) is missing: the nearest box has an IoU of 0.9756",
        ),
        (seen((0, 0, 40, 40, 0.902, 1), B), r"detection 1 .* has a score of 0.9020"),
        (seen((0, 0, 40, 40, np.nan, 1), B), r"detection 1 .* has a score of nan"),
        (seen((0, 0, 40, 40, 0.9, 2), B), r"detection 1 .* or another class"),
        (seen(A), r"detection 2 \(zero, score 0.6000\) is missing"),
        (seen(A, B, B), r"a detection too many \(zero, score 0.6000\)"),
        (seen(), "detection 1 .* IoU of 0.0000"),
        (seen(A, B, embedding=1.01), "the embedding is off by 0.02"),
        (seen(A, B, embedding=np.nan), "the embedding is off by nan"),
        (replace(seen(A, B), embedding=np.ones(3, np.float32)), "3 values instead of 4"),
    ],
)
def test_differences_are_named(other: Detections, problem: str | None) -> None:
    found = golden.difference(seen(A, B), other, ("zero", "one", "two"))
    assert found is None if problem is None else re.search(problem, found or "")


def test_a_sliver_at_the_border_is_compared_by_its_corners() -> None:
    sliver = seen((100, 20, 100, 40, 0.9, 1))
    assert golden.difference(sliver, seen((99.99, 20, 100, 40, 0.9, 1)), ("zero", "one")) is None
    assert golden.difference(sliver, seen((99, 20, 100, 40, 0.9, 1)), ("zero", "one")) is not None


def raw(*scores: float, step: float = 15.0) -> Any:
    """One class; boxes in a row, ten pixels wide."""
    rows = [(10 + step * n, 80, 10, 10, score) for n, score in enumerate(scores)]
    return np.array(rows, np.float32).T


ONE = PackageConfig(names=("one",), image_size=160)


def answer(values: Any, conf: float) -> Detections:
    return Detections(*postprocess(values, ONE, conf), np.ones(4, np.float32))


def alarm(values: Any, changed: Any, conf: float) -> bool:
    """Whether a server whose model rounds a little differently would be refused."""
    return golden.difference(answer(values, conf), answer(changed, conf), ONE.names) is not None


def test_the_limit_avoids_scores_that_a_rounding_error_could_push_over_it() -> None:
    assert golden.clear_conf(raw(0.9, 0.8, 0.7, 0.6, 0.01), ONE) == pytest.approx(0.305)
    close = raw(0.9, 0.8, 0.7, 0.6, 0.25005, 0.01)
    changed = close.copy()
    changed[4] *= 0.9995
    assert alarm(close, changed, ONE.conf)  # a false one
    assert not alarm(close, changed, golden.clear_conf(close, ONE))


def test_the_limit_avoids_boxes_that_suppression_can_hardly_tell_apart() -> None:
    # The last two overlap by 0.70003, and suppression begins at 0.7.
    row = [(10, 10, 10, 10, 0.9), (30, 10, 10, 10, 0.8), (50, 10, 10, 10, 0.7), (70, 10, 10, 10, 0.6)]
    close = np.array(
        [*row, (60, 90, 100, 20, 0.5), (60 + 17.645, 90, 100, 20, 0.28), (10, 140, 9, 9, 0.01)], np.float32
    ).T
    changed = close.copy()
    changed[0, 5] += 0.01
    assert len(answer(close, ONE.conf)) == 5
    assert alarm(close, changed, ONE.conf)
    limit = golden.clear_conf(close, ONE)
    assert len(answer(close, limit)) >= 4
    assert not alarm(close, changed, limit)
    ties = raw(*[0.9] * 4, *[0.8] * 4, 0.1, step=0.5)
    assert golden.clear_conf(ties, ONE) == 1.0


def test_a_weak_model_is_asked_below_its_own_limit() -> None:
    assert golden.clear_conf(raw(0.012, 0.010, 0.008, 0.006, 0.002, 0.001), ONE) == pytest.approx(0.004)


def test_images_without_a_clear_limit_are_the_last_choice() -> None:
    cases = [golden.Case(bytes([number]), conf, seen()) for number, conf in enumerate((1.0, 0.3, 1.0, 0.2, 0.25))]
    assert [case.image[0] for case in golden.clearest(cases, 2)] == [1, 3]
    assert [case.image[0] for case in golden.clearest(cases, 4)] == [1, 3, 4, 0]


def test_images_are_chosen_to_differ() -> None:
    embeddings = np.array([[0, 0], [0, 0.1], [5, 5], [0.1, 0], [5, 5.1], [-4, 6]], np.float32)
    assert golden.diverse(embeddings, np.array([1, 3, 1, 0, 2, 0]), 3) == [1, 5, 4]
    assert sorted(golden.diverse(embeddings, np.zeros(6, np.int64), 99)) == list(range(6))
    assert golden.diverse(embeddings[:1], np.zeros(1, np.int64), 8) == [0]
