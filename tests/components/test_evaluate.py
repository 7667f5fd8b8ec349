"""The gate says what the numbers say, the numbers are COCO's, and the page shows them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.evaluate.gate import Comparison, Measured, Older, judge
from kfp_flywheel.components.evaluate.stage import run
from kfp_flywheel.components.recipes.detection.evaluate import map50, match, score
from kfp_flywheel.components.recipes.detection.mistakes import worst
from kfp_flywheel.components.recipes.detection.predict import Detections
from kfp_flywheel.components.runtime.artifacts import Blob, EvalReport, Sample
from kfp_flywheel.components.runtime.config import Evaluate
from kfp_flywheel.components.runtime.decisions import concluded
from kfp_flywheel.components.runtime.step import run_records
from kfp_flywheel.components.statistics.bootstrap import Bounds

from tests import blocks

NOWHERE = Blob(uri="", sha256="", size=0)


def sample(*boxes, side=100):
    return Sample(path="x", image=NOWHERE, width=side, height=side, boxes=boxes, split="test", group="x")


def detections(*found):
    """Each: class, score, x0, y0, x1, y1 in pixels."""
    table = np.array(sorted(found, key=lambda row: -row[1]), np.float32).reshape(-1, 6)
    return Detections(table[:, 2:], table[:, 1], table[:, 0].astype(np.int64), np.zeros(1, np.float32))


# Accuracy


def test_average_precision_of_a_case_done_by_hand():
    """Two of three boxes are found, with a false alarm between them in score.

    Precision 1 up to recall 1/3 (34 of COCO's 101 recalls), 2/3 up to 2/3 (33 more), 0 beyond.
    """
    labels = sample((0, 0.1, 0.1, 0.2, 0.2), (0, 0.5, 0.5, 0.2, 0.2), (0, 0.9, 0.9, 0.2, 0.2))
    seen = detections((0, 0.9, 0, 0, 20, 20), (0, 0.8, 60, 0, 80, 20), (0, 0.7, 40, 40, 60, 60))
    expected = (34 * 1 + 33 * 2 / 3) / 101
    found = score([seen], [labels], ["thing"])
    assert found.map50 == pytest.approx(expected)
    assert found.map == pytest.approx(expected)
    assert map50(match([seen], [labels], 1), np.ones((1, 1), np.int64))[0] == pytest.approx(expected)


def test_what_cannot_be_measured_has_no_value(capfd):
    nothing, seen = sample(), detections((0, 0.9, 0, 0, 20, 20))
    assert score([seen], [nothing], ["a", "b"]).map50 is None
    found = score([seen], [sample((0, 0.1, 0.1, 0.2, 0.2))], ["a", "b"])
    assert found.class_map50 == {"a": pytest.approx(1), "b": None}
    assert found.map50 == pytest.approx(1)
    assert score([detections()], [sample((0, 0.1, 0.1, 0.2, 0.2))], ["a", "b"]).class_map50 == {"a": 0, "b": None}
    assert capfd.readouterr() == ("", "")  # the library would print tables


@st.composite
def judged(draw):
    """Images with labels of three classes, and detections near and far from them, with distinct scores."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples, found = [], []
    for _ in range(draw(st.integers(1, 6))):
        boxes, rows = [], []
        for _ in range(rng.integers(0, 5)):
            kind, (w, h) = int(rng.integers(3)), rng.uniform(0.1, 0.4, 2)
            x, y = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2)
            boxes.append((kind, x, y, w, h))
            for _ in range(rng.integers(0, 3)):
                corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) + rng.normal(0, 0.04, 4)
                corners[2:] = np.maximum(corners[2:], corners[:2] + 0.01)
                rows.append((kind if rng.random() < 0.8 else int(rng.integers(3)), rng.random(), *corners * 100))
        for _ in range(rng.integers(0, 4)):
            x, y = rng.uniform(0, 60, 2)
            rows.append((int(rng.integers(3)), rng.random(), x, y, x + 30, y + 30))
        samples.append(sample(*boxes))
        found.append(detections(*rows))
    return samples, found


@settings(max_examples=60, deadline=None)
@given(judged())
def test_own_map50_is_the_librarys(case):
    samples, found = case
    theirs = score(found, samples, ["a", "b", "c"])
    matches = match(found, samples, 3)
    once = np.ones((1, len(samples)), np.int64)
    np.testing.assert_allclose(map50(matches, once)[0], theirs.map50 if theirs.map50 is not None else np.nan, atol=1e-9)
    for entry, value in zip(matches, theirs.class_map50.values(), strict=True):
        np.testing.assert_allclose(map50([entry], once)[0], value if value is not None else np.nan, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(judged(), st.randoms(use_true_random=False))
def test_counting_an_image_twice_is_having_it_twice(case, random):
    samples, found = case
    counts = [random.randint(0, 3) for _ in samples]
    copies = [number for number, count in enumerate(counts) for _ in range(count)]
    theirs = score([found[n] for n in copies], [samples[n] for n in copies], ["a", "b", "c"]).map50
    ours = map50(match(found, samples, 3), np.array([counts]))[0]
    np.testing.assert_allclose(ours, theirs if theirs is not None else np.nan, atol=1e-9)


def test_ultralytics_measures_about_the_same():
    """Its curve is integrated by trapezia over 101 recalls, COCO's is read at them: they differ by up to about 0.02."""
    from ultralytics.utils.metrics import ap_per_class

    rng = np.random.default_rng(5)
    samples, found = [], []
    for _ in range(150):
        cells = rng.choice(16, 6, replace=False)
        places = [np.array([c % 4 * 25, c // 4 * 25, c % 4 * 25 + 20, c // 4 * 25 + 20]) for c in cells]
        kinds = rng.integers(0, 3, 6)
        boxes = [(int(k), *(p[:2] + 10) / 100, 0.2, 0.2) for k, p in zip(kinds[:4], places, strict=False)]
        rows = [(k, rng.beta(3, 2), *p) for k, p in zip(kinds[:4], places, strict=False) if rng.random() < 0.8]
        rows += [(k, rng.beta(2, 4), *p) for k, p in zip(kinds[4:], places[4:], strict=True)]
        samples.append(sample(*boxes))
        found.append(detections(*rows))
    matches = match(found, samples, 3)
    flat = [(m.hit, m.image) for m in matches]
    scores = [np.sort(np.concatenate([f.scores[f.classes == k] for f in found]))[::-1] for k in range(3)]
    theirs = ap_per_class(
        np.concatenate([hit for hit, _ in flat])[:, None],
        np.concatenate(scores),
        np.concatenate([np.full(len(hit), k) for k, (hit, _) in enumerate(flat)]),
        np.concatenate([[box[0] for box in s.boxes] for s in samples]),
    )[5][:, 0]
    ours = score(found, samples, ["a", "b", "c"])
    assert list(ours.class_map50.values()) == pytest.approx(theirs.tolist(), abs=0.02)


def test_the_worst_mistakes_come_first_and_are_named():
    labels = [sample((0, 0.1, 0.1, 0.2, 0.2), (1, 0.5, 0.5, 0.2, 0.2)), sample((0, 0.1, 0.1, 0.2, 0.2)), sample()]
    seen = [
        detections((1, 0.9, 0, 0, 20, 20)),  # took 0 for 1, missed 1
        detections((0, 0.9, 0, 0, 20, 20)),  # right
        detections((1, 0.8, 0, 0, 20, 20)),  # nothing is there
    ]
    first, second = worst(seen, labels, 12)
    assert (first.image, first.taken, first.missed, first.false_alarms) == (0, ((0, 1, pytest.approx(0.9)),), (1,), ())
    assert (second.image, second.false_alarms) == (2, ((1, pytest.approx(0.8)),))
    assert first.cost == pytest.approx(2.9)
    assert worst(seen, labels, 1) == [first]
    both = detections((0, 0.9, 0, 0, 20, 20), (1, 0.8, 50, 50, 70, 70))
    assert worst([both], labels[1:2], 1)[0].right == {0}


# The gate

GOOD = Measured(100, 0.9, {"a": 0.95, "b": 0.85}, 5.0, 3.0, None)
LIMITS = Evaluate()


def compared(lower, estimate, upper, **changes):
    return replace(GOOD, comparison=replace(Comparison(Bounds(estimate, lower, upper, 0.95), 100, 2), **changes))


def grown(new, old, images=100, **changes):
    """Lower bound, estimate and upper bound on the new holdout, and on an older one."""
    comparison = replace(compared(*old).comparison, **changes)
    return replace(compared(*new), older=(Older("old", images, comparison),))


@pytest.mark.parametrize(
    ("measured", "decision", "said"),
    [
        (GOOD, "pass", "no champion"),
        (replace(GOOD, map50=0.49), "fail", "mAP50 0.490 is below the limit 0.500"),
        (replace(GOOD, class_map50={"a": 0.95, "b": 0.05}), "fail", "'b' is 0.050"),
        (replace(GOOD, class_map50={"a": 0.95, "b": None}), "undecided", "no box of 'b'"),
        (replace(GOOD, class_map50={"a": 0.05, "b": None}), "fail", "'a' is 0.050"),
        (replace(GOOD, map50=None, class_map50={"a": None}), "undecided", "no labelled box"),
        (replace(GOOD, images=29), "undecided", "29 images; 30"),
        (replace(GOOD, images=29, map50=0.1), "undecided", "29 images; 30"),
        (replace(GOOD, images=29, size_mb=501.0), "fail", "501.00 MB"),
        (replace(GOOD, latency_ms=1000.1), "fail", "1000.1 ms"),
        (replace(GOOD, latency_ms=None), "undecided", "not measured"),
        (compared(-0.01, 0.0, 0.01), "pass", "ruled out"),
        (compared(-0.05, 0.0, 0.05), "undecided", "neither shown nor ruled out"),
        (compared(-0.09, -0.06, -0.03), "fail", "loses more than the margin 0.020"),
        (compared(-0.01, 0.0, 0.01, units=19), "undecided", "20 independent images"),
        (compared(-0.01, 0.0, 0.01, lost=("c",)), "fail", "serves 'c'"),
        (compared(-0.01, 0.0, 0.01, difference=None), "undecided", "cannot be measured"),
        (replace(compared(0.1, 0.2, 0.3), map50=0.4), "fail", "below the limit"),
        (grown((0.01, 0.1, 0.2), (-0.01, 0.0, 0.01)), "pass", "holdout old, against the champion, mAP50 changes by"),
        (grown((0.0, 0.1, 0.2), (-0.01, 0.0, 0.01)), "undecided", "better, as it must be on new images, is not shown"),
        (grown((-0.2, -0.1, 0.0), (-0.01, 0.0, 0.01)), "fail", "it is not better"),
        (grown((0.01, 0.1, 0.2), (-0.04, 0.0, 0.01)), "undecided", "more than 0.030 is neither shown nor ruled out"),
        (grown((0.01, 0.1, 0.2), (-0.06, -0.05, -0.04)), "fail", "loses more than the margin 0.030"),
        (grown((0.01, 0.1, 0.2), (-0.01, 0.0, 0.01), images=29), "undecided", "fewer than 30 images"),
        (grown((0.01, 0.1, 0.2), (-0.06, -0.05, -0.04), images=29), "undecided", "fewer than 30 images"),
        (grown((0.01, 0.1, 0.2), (-0.01, 0.0, 0.01), units=19), "undecided", "20 independent images"),
        (grown((0.01, 0.1, 0.2), (-0.01, 0.0, 0.01), difference=None), "undecided", "cannot be measured"),
    ],
)
def test_each_case_is_decided_on_purpose(measured, decision, said):
    _, found, reason = judge(measured, LIMITS)
    assert (found, said in reason) == (decision, True), reason


def test_asking_nothing_of_single_classes_lets_a_missing_one_pass_and_says_so():
    checks, decision, _ = judge(replace(GOOD, class_map50={"a": 0.9, "b": None}), Evaluate(min_class_map50=0))
    assert decision == "pass"
    assert "Nothing is known about 'b'" in next(check.sentence for check in checks if check.name == "worst class")


def test_each_older_holdout_has_a_check_of_its_own():
    good, bad = (grown((0.01, 0.1, 0.2), old).older[0] for old in ((-0.01, 0.0, 0.01), (-0.06, -0.05, -0.04)))
    checks, decision, reason = judge(
        replace(compared(0.01, 0.1, 0.2), older=(good, replace(bad, dataset="older"))), LIMITS
    )
    found = {check.name: check.outcome for check in checks}
    assert (decision, found["holdout old"], found["holdout older"]) == ("fail", "pass", "fail")
    assert "holdout older" in reason
    assert "holdout old," not in reason


value = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)
comparisons = st.builds(
    Comparison,
    difference=st.none()
    | st.tuples(*[st.floats(allow_nan=True)] * 3).map(lambda v: Bounds(v[0], min(v[1:]), max(v[1:]), 0.95)),
    units=st.integers(0, 200),
    classes=st.integers(0, 3),
    lost=st.sampled_from([(), ("c",)]),
)
anything = st.builds(
    Measured,
    images=st.integers(0, 200),
    map50=value,
    class_map50=st.dictionaries(st.sampled_from("abc"), value),
    latency_ms=value,
    size_mb=value,
    comparison=st.none() | comparisons,
    older=st.lists(st.builds(Older, dataset=st.just("old"), images=st.integers(0, 200), comparison=comparisons)).map(
        tuple
    ),
)


@settings(max_examples=400, deadline=None)
@given(anything, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_only_numbers_that_are_there_and_within_their_limits_pass(measured, overall, single, margin):
    limits = Evaluate(min_map50=overall, min_class_map50=single, margin=margin)
    checks, decision, reason = judge(measured, limits)
    outcomes = {check.outcome for check in checks}
    assert decision == ("fail" if "fail" in outcomes else "undecided" if "undecided" in outcomes else "pass")
    assert reason
    for check in checks:
        assert check.value is None or np.isfinite(check.value)
        assert check.sentence
    if decision == "pass":
        assert measured.images >= limits.min_images
        assert measured.map50 >= overall
        assert measured.latency_ms <= limits.max_latency_ms
        assert measured.size_mb <= limits.max_size_mb
        assert all(v >= single for v in measured.class_map50.values() if v is not None and np.isfinite(v))
        found = measured.comparison
        if found is not None:
            assert not found.lost
            assert found.units >= 20
            assert found.difference.lower > 0 if measured.older else found.difference.lower >= -margin
        for older in measured.older:
            assert older.images >= limits.min_images
            assert older.comparison.units >= 20
            assert older.comparison.difference.lower >= -limits.old_margin


@settings(max_examples=100, deadline=None)
@given(anything, st.floats(0, 1), st.floats(0, 1))
def test_a_better_model_is_never_judged_worse(measured, low, high):
    rank = {"fail": 0, "undecided": 1, "pass": 2}
    decisions = [judge(replace(measured, map50=v), LIMITS)[1] for v in sorted((low, high))]
    assert rank[decisions[0]] <= rank[decisions[1]]


# The stage


class Case:
    """The files of one evaluation, as KFP would lay them out."""

    def __init__(self, world, platform, tmp_path):
        self.store, self.platform, self.folder = world.store, platform, tmp_path
        self.made = 0

    def package(self, **how):
        self.made += 1
        return blocks.package(self.store, self.folder / f"package-{self.made}", **how)

    def evaluate(self, package, champion=None, dataset=None, run_id="run", **limits):
        dataset = dataset or blocks.dataset(self.store)
        here = self.folder / f"step-{run_id}"
        package.write(here / "package")
        blocks.resolution(self.store, champion).write(here / "champion")
        dataset.write(here / "dataset")
        names = ("package", "champion", "dataset", "report", "page.html")
        gate = run(
            *(str(here / name) for name in names),
            config="config",
            **Evaluate(**limits).plain(),
            platform=self.platform.line(),
            run_id=run_id,
        )
        report = EvalReport.read(here / "report")
        assert gate == report.decision
        return report, (here / "page.html").read_text()


@pytest.fixture
def case(world, platform, tmp_path):
    return Case(world, platform, tmp_path)


def outcomes(report):
    return {check.name: check.outcome for check in report.checks}


def test_a_good_first_package_passes(case):
    dataset = blocks.dataset(case.store)
    report, page = case.evaluate(case.package(), dataset=dataset)
    assert (report.decision, report.champion, report.images) == ("pass", None, 40)
    assert report.challenger_scores.map50 == pytest.approx(1)
    assert report.challenger_scores.map == pytest.approx(1)
    assert 0 < report.challenger_scores.latency_ms < 1000
    assert "Passed the gate" in page
    assert "every box was found" in page
    assert concluded(case.store, dataset.id, "config") is None  # the run is not over yet


def test_a_champion_that_is_better_stays_and_the_run_is_concluded(case):
    dataset = blocks.dataset(case.store, 120)
    report, page = case.evaluate(case.package(blind=(0, 5, 10, 15)), case.package(), dataset)
    assert report.decision == "fail"
    assert outcomes(report) == {**dict.fromkeys(outcomes(report), "pass"), "champion": "fail"}
    assert report.champion_scores.map50 == pytest.approx(1)
    assert 0.6 < report.challenger_scores.map50 < 0.9
    assert "missed" in page
    outcome = concluded(case.store, dataset.id, "config")
    assert (outcome.step, outcome.decision, outcome.reason) == ("evaluate", "fail", report.reason)


def test_a_challenger_that_is_as_good_as_the_champion_passes(case):
    """Both fail on the same images: only a paired comparison sees that they are alike."""
    both = {"blind": (0, 5, 6)}
    report, _ = case.evaluate(case.package(noise=0.01, **both), case.package(**both), blocks.dataset(case.store, 90))
    assert report.decision == "pass"
    assert report.challenger_scores.map50 < 0.9
    assert -0.02 < report.checks[3].value < 0


def test_images_of_one_group_are_one_piece_of_evidence(case):
    """Ninety images, but of fifteen scenes."""
    dataset = blocks.dataset(case.store, 90, groups=15)
    report, _ = case.evaluate(case.package(noise=0.01), case.package(), dataset)
    assert report.decision == "undecided"
    assert "15 independent images" in report.reason


def test_being_alike_on_few_images_shows_nothing(case):
    """Of 40 images with 90 boxes none is lost; up to 3 in 90 could be."""
    report, _ = case.evaluate(case.package(noise=0.01), case.package())
    assert report.decision == "undecided"
    assert "neither shown nor ruled out" in report.reason


def test_few_images_decide_nothing(case):
    report, _ = case.evaluate(case.package(), dataset=blocks.dataset(case.store, 5))
    assert (report.decision, outcomes(report)["mAP50"]) == ("undecided", "undecided")
    assert "5 images; 30 are needed" in report.reason


def test_a_class_without_a_test_image_cannot_be_judged(case):
    dataset = blocks.dataset(case.store, only=("red",))
    report, _ = case.evaluate(case.package(), dataset=dataset)
    assert report.decision == "undecided"
    assert "'green'" in report.reason
    assert concluded(case.store, dataset.id, "config").decision == "undecided"


def test_classes_are_matched_by_name_not_by_number(case):
    report, _ = case.evaluate(case.package(), case.package(names=("green", "red")), blocks.dataset(case.store, 150))
    assert report.champion_scores.class_map50 == {"red": pytest.approx(1), "green": pytest.approx(1)}
    assert report.decision == "pass"


def test_a_champion_is_compared_on_the_classes_that_it_knows(case):
    report, _ = case.evaluate(case.package(), case.package(names=("red",)), blocks.dataset(case.store, 150))
    assert report.champion_scores.class_map50 == {"red": pytest.approx(1), "green": None}
    assert "classes in common: 1" in report.checks[3].sentence
    assert report.decision == "pass"


def test_a_class_that_the_champion_serves_must_not_get_lost(case):
    report, _ = case.evaluate(case.package(), case.package(names=("red", "green", "blue")))
    assert (report.decision, outcomes(report)["classes"]) == ("fail", "fail")
    assert "'blue'" in report.reason


def test_a_package_that_was_trained_for_other_classes_is_refused(case, capsys):
    with pytest.raises(SystemExit) as stopped:
        case.evaluate(case.package(names=("red", "blue")))
    assert stopped.value.code == 2
    assert "other classes" in capsys.readouterr().out


@pytest.mark.parametrize("who", ["challenger", "champion"])
def test_a_package_that_does_not_reproduce_its_golden_outputs_is_no_package(case, who, capsys):
    good = case.package()
    bad = case.package(confused=range(16), golden_of=case.folder / "package-1" / "golden.npz")
    with pytest.raises(SystemExit) as stopped:
        case.evaluate(*((bad, good) if who == "challenger" else (good, bad)))
    assert stopped.value.code == 3
    assert "golden image 1 of 2 is not reproduced" in capsys.readouterr().out
    assert not (case.folder / "step-run" / "report").exists()


def test_an_image_whose_bytes_changed_is_noticed(case, capsys):
    dataset = blocks.dataset(case.store)
    image = next(Path(case.store.root.removeprefix("file://")).glob("blobs/*/*.png"))
    image.chmod(0o644)
    image.write_bytes(b"other")
    with pytest.raises(SystemExit) as stopped:
        case.evaluate(case.package(), dataset=dataset)
    assert stopped.value.code == 3
    assert "do not hash to its name" in capsys.readouterr().out


UPPER, LOWER = range(8), range(8, 16)


@pytest.fixture
def retrained(case):
    """Data that grew: blocks lay in the upper half, now they lie in the lower one."""
    return blocks.dataset(case.store, 120, cells=LOWER, parent=blocks.dataset(case.store, 120, cells=UPPER))


def test_a_retrained_model_that_is_better_on_new_images_and_as_good_on_old_ones_passes(case, retrained):
    report, page = case.evaluate(case.package(), case.package(blind=(8, 10, 13)), retrained)
    assert report.decision == "pass", report.reason
    old = retrained.holdouts[1].dataset
    assert outcomes(report) == dict.fromkeys(
        ["images", "mAP50", "worst class", "champion", f"holdout {old}", "latency", "size"], "pass"
    )
    assert report.images == 120
    assert report.champion_scores.map50 < 0.8
    assert [(older.dataset, older.images) for older in report.older] == [(old, 120)]
    assert report.older[0].challenger_scores.map50 == report.older[0].champion_scores.map50 == pytest.approx(1)
    assert "New and older holdouts" in page
    row = page[page.index("New images") : page.index("Accuracy on the new holdout")]
    assert re.findall(r"[01]\.\d{3}", row) == ["1.000", f"{report.champion_scores.map50:.3f}", "1.000", "1.000"]
    assert f"{old}, 120 images" in row


def test_a_retrained_model_that_is_only_as_good_on_new_images_does_not_pass(case, retrained):
    report, _ = case.evaluate(case.package(noise=0.01), case.package(), retrained)
    assert report.decision == "undecided"
    assert "better, as it must be on new images, is not shown" in report.reason


def test_a_retrained_model_that_forgot_the_old_images_fails(case, retrained):
    report, _ = case.evaluate(case.package(blind=(0, 5)), case.package(blind=(8, 10, 13)), retrained)
    assert report.decision == "fail"
    assert outcomes(report)["champion"] == "pass"
    assert f"older holdout {retrained.holdouts[1].dataset}" in report.reason


def test_without_a_champion_older_holdouts_are_shown_and_nothing_is_compared(case, retrained):
    report, page = case.evaluate(case.package(), dataset=retrained)
    assert report.decision == "pass"
    assert report.older[0].champion_scores is None
    assert report.agreement == ()
    assert "New and older holdouts" in page
    assert 'number">Champion</th>' not in page


def test_agreement_is_of_what_both_would_answer_to_the_own_holdout(case, retrained):
    alike, _ = case.evaluate(case.package(noise=0.01), case.package(), retrained)
    assert alike.agreement == (1.0,) * 120
    other, _ = case.evaluate(case.package(), case.package(blind=(8, 10, 13)), retrained, run_id="other")
    assert len(other.agreement) == 120  # the challenger sees something everywhere
    assert 0 in other.agreement
    assert 0.5 < np.mean(other.agreement) < 0.9
    neither = {"blind": range(16)}
    blind, _ = case.evaluate(case.package(noise=0.01, **neither), case.package(**neither), retrained, run_id="blind")
    assert blind.agreement == ()


def test_the_same_question_is_answered_once(case):
    dataset, package = blocks.dataset(case.store), case.package()
    first, page = case.evaluate(package, dataset=dataset)
    again, same = case.evaluate(package, dataset=dataset, run_id="again")
    assert (again, same) == (first, page)
    assert run_records(case.store, "again")[0].outcome == "reused"
    other, _ = case.evaluate(package, dataset=dataset, run_id="other", min_map50=0.6)
    assert other.id != first.id


def test_the_reports_id_does_not_depend_on_how_long_it_took(case, platform, tmp_path, monkeypatch):
    from kfp_flywheel.components.evaluate import measure
    from kfp_flywheel.components.runtime.config import Platform
    from kfp_flywheel.components.runtime.wiring import connect

    elsewhere = Platform.local(tmp_path / "elsewhere")
    other = Case(connect(elsewhere), elsewhere, tmp_path / "other")
    first, _ = case.evaluate(case.package())
    monkeypatch.setattr(measure, "latency", lambda *given: 999.0)
    second, _ = other.evaluate(other.package())
    assert first.challenger_scores.latency_ms != second.challenger_scores.latency_ms == 999.0
    assert first.id == second.id


def test_a_champion_at_the_wrong_place_is_noticed(case, capsys):
    champion = case.package()
    release = blocks.resolution(case.store, champion).champion
    lost = release.but(package="other")
    from kfp_flywheel.components.evaluate.stage import champion_of
    from kfp_flywheel.components.runtime.errors import PlatformError

    with pytest.raises(PlatformError, match="not the champion's other"):
        champion_of(case.store, blocks.resolution(case.store).but(champion=lost))


def test_the_page_stands_alone_and_shows_the_worst_mistakes(case):
    import base64

    import cv2

    report, page = case.evaluate(case.package(confused=range(8), blind=(12, 13)), case.package())
    assert report.decision == "fail"
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:image/jpeg)', page)
    drawn = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(drawn) == 12
    images = [cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR) for text in drawn]
    assert {max(image.shape) for image in images} == {320}
    assert "took red for green" in page
    assert len(page) < 1_000_000


def test_names_from_outside_are_escaped():
    from kfp_flywheel.components.evaluate.page import mistakes_on, render
    from kfp_flywheel.components.runtime.artifacts import Scores

    evil = "<img src=x onerror=alert(1)>"
    scores = Scores(map50=0.1, map=None, class_map50={evil: 0.1}, latency_ms=1, size_mb=1)
    measured = Measured(100, 0.1, {evil: 0.1}, 1, 1, None)
    checks, decision, reason = judge(measured, LIMITS)
    labels = sample((0, 0.5, 0.5, 0.2, 0.2)).but(path=evil)
    image = np.zeros((100, 100, 3), np.uint8)
    gallery = mistakes_on(worst([detections()], [labels], 1), [labels], [detections()], [evil], lambda _: image)
    page = render(decision, reason, checks, scores, scores, gallery, [(evil, evil)])
    assert evil not in page
    assert "&lt;img src=x" in page


def test_evaluation_needs_no_torch(case):
    """The image of the steps has none: a package is judged by what serves it."""
    package, dataset = case.package(), blocks.dataset(case.store)
    for name, manifest in (("package", package), ("dataset", dataset), ("champion", blocks.resolution(case.store))):
        manifest.write(case.folder / name)
    program = """
import sys
from kfp_flywheel.components.evaluate.stage import run
folder, platform = sys.argv[1:]
files = [f"{folder}/{name}" for name in ("package", "champion", "dataset", "report", "page")]
run(*files, "config", 0.5, 0.1, 0.02, 30, 0.03, 1000.0, 500.0, platform, "r")
print(sorted({"torch", "ultralytics", "ray", "kfp"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(case.folder), case.platform.line()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(line.startswith("flywheel | ") for line in done.stdout.splitlines()[:-1])
    assert done.stderr == ""


def test_the_metrics_of_what_did_not_pass_are_logged_to_the_training_run(case):
    from kfp_flywheel.components.runtime.adapters.mlflow import open_mlflow

    client = open_mlflow(case.platform.tracking)
    run_id = client.create_run(client.create_experiment("train")).info.run_id
    package = case.package().but(tracking_run=run_id)
    case.evaluate(package)
    assert client.get_run(run_id).data.metrics == {}  # register does that, which waits for MLflow anyway
    case.evaluate(package, run_id="strict", min_images=1000)
    data = client.get_run(run_id).data
    assert data.metrics["holdout/map50"] == pytest.approx(1)
    assert data.tags["flywheel.decision"] == "undecided"
    assert "MLflow" not in run_records(case.store, "strict")[0].sentence


def test_a_tracking_server_that_is_away_decides_nothing(case, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    case.platform = case.platform.but(tracking="http://127.0.0.1:9")
    report, _ = case.evaluate(case.package().but(tracking_run="0" * 32), min_images=1000)
    assert report.decision == "undecided"
    record = run_records(case.store, "run")[0]
    assert "could not be logged to MLflow" in record.sentence
    assert json.loads(record.line())["outcome"] == "done"
