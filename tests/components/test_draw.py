"""What is drawn lies where it should, on a copy, in the two manners that a person can tell apart."""

import base64

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.recipes.detection.draw import FOUND, RIGHT, SMALLEST, TRUTH, draw, to_jpeg_uri
from kfp_flywheel.components.recipes.detection.predict import Detections


def detections(boxes, scores=None, classes=None):
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores if scores is not None else [0.9] * count, np.float32),
        np.array(classes if classes is not None else [0] * count, np.int64),
        np.zeros(1, np.float32),
    )


def near(image, colour):
    return np.abs(image.astype(int) - colour).max(axis=2) < 8


def test_a_detection_is_a_whole_line_and_a_label_is_dashed():
    image = np.zeros((400, 400, 3), np.uint8)
    found = near(draw(image, detections([[100, 100, 300, 300]]), ["a"]), FOUND)
    labelled = near(draw(image, ((0, 0.5, 0.5, 0.5, 0.5),), ["a"]), TRUTH)
    assert found[300, 100:300].all()
    assert 0.3 < labelled[100, 100:300].mean() < 0.8
    assert labelled[100, 100]
    for drawn in (found, labelled):
        assert not drawn[150:250, 150:250].any()
        assert not drawn[:60].any()


def test_what_is_right_has_a_colour_of_its_own():
    found = detections([[50, 50, 150, 150], [200, 200, 300, 300]])
    drawn = draw(np.zeros((400, 400, 3), np.uint8), found, ["a"], right={1})
    assert near(drawn, FOUND)[150, 50:150].all()
    assert near(drawn, RIGHT)[300, 200:300].all()


def test_the_image_itself_is_left_alone():
    image = np.zeros((400, 400, 3), np.uint8)
    draw(image, detections([[100, 100, 300, 300]]), ["a"], truth=((0, 0.5, 0.5, 0.5, 0.5),))
    assert not image.any()


def test_a_small_image_is_enlarged_with_its_boxes():
    drawn = draw(np.zeros((80, 160, 3), np.uint8), detections([[40, 20, 120, 60]]), ["a"])
    assert drawn.shape == (SMALLEST // 2, SMALLEST, 3)
    assert near(drawn, FOUND)[120, 90:230].all()


def test_truth_lies_beneath_what_was_found():
    image = np.zeros((400, 400, 3), np.uint8)
    drawn = draw(image, detections([[100, 100, 300, 300]]), ["a"], truth=((0, 0.5, 0.5, 0.5, 0.5),))
    assert near(drawn, FOUND)[200, 100]
    assert near(drawn, TRUTH).any()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.lists(st.tuples(*[st.floats(-50, 600, width=32)] * 4), max_size=4),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=3),
    st.text(min_size=1, max_size=60),
)
def test_any_boxes_and_any_name_can_be_drawn_on_any_image(shape, boxes, labels, name):
    image = np.zeros((*shape, 3), np.uint8)
    drawn = draw(image, detections(boxes), [name], truth=[(0, *label) for label in labels])
    assert drawn.dtype == np.uint8
    assert max(drawn.shape[:2]) == max(SMALLEST, *shape)


@pytest.mark.parametrize("name", ["Löwe", "猫", "a\nb"])
def test_a_name_that_the_font_lacks_is_drawn_as_a_number(name):
    image, found = np.zeros((400, 400, 3), np.uint8), detections([[100, 100, 300, 300]])
    assert (draw(image, found, [name]) == draw(image, found, ["class 0"])).all()
    assert (draw(image, found, ["cat"]) != draw(image, found, ["class 0"])).any()


def test_a_jpeg_uri_is_an_image_of_at_most_that_width():
    content = cv2.imdecode(
        np.frombuffer(
            base64.b64decode(to_jpeg_uri(np.full((300, 900, 3), 200, np.uint8), 320).split(",")[1]), np.uint8
        ),
        1,
    )
    assert content.shape == (107, 320, 3)
    assert abs(int(content.mean()) - 200) < 3
    assert to_jpeg_uri(np.zeros((900, 300, 3), np.uint8), 320).startswith("data:image/jpeg;base64,")
