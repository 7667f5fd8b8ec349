"""What monitoring knows of a request: a few numbers about the image and about what the model saw in it."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .predict import Detections, Image

IMAGE_FEATURES = (
    "brightness",
    "contrast",
    "red",
    "green",
    "blue",
    "saturation",
    "sharpness",
    "noise",
    "entropy",
    "megapixels",
    "log_aspect",
)
PREDICTION_FEATURES = (
    "boxes",
    "classes",
    "confidence_mean",
    "confidence_min",
    "confidence_max",
    "confidence_std",
    "box_area",
    "box_log_aspect",
    "box_x",
    "box_y",
    "box_spread",
)
FEATURES = IMAGE_FEATURES + PREDICTION_FEATURES
GREY_SIDE, COLOUR_SIDE = 640, 320
"""Larger images are thinned out, by whole pixels: averaging would take away the noise that is to be seen."""
_LEVELS = np.arange(256, dtype=np.float64)
_SECOND_DIFFERENCE = np.array([1, -2, 1], np.float32)


def features(image_bgr: Image, detections: Detections) -> dict[str, float]:
    """Describe one request.

    Args:
        image_bgr: (height, width, 3), 8 bits.
        detections: What the model saw in it, at the package's own score limit.

    Returns:
        One value for each of FEATURES, in that order. brightness, contrast, red, green, blue, noise: grey levels, 0
        to 255; saturation: 1 − sum of the least channel / sum of the greatest; sharpness: variance of the Laplacian;
        entropy: bits of the grey levels; box_area, box_x, box_y, box_spread: fractions of the image (mean area, mean
        centre, root mean square distance of centres from it); log_aspect, box_log_aspect: natural logarithm of width
        over height, the mean for boxes.
        Without a box, all that is said about boxes is NaN, but `boxes` and `classes` (distinct ones), which are 0.
        Only those that describe boxes can be NaN.
    """
    height, width = image_bgr.shape[:2]
    frame = (width * height / 1e6, math.log(width / height))
    values = (*_of_image(image_bgr), *frame, *_of_boxes(detections, width, height))
    return dict(zip(FEATURES, values, strict=True))


def _thin(image: Image, longest: int) -> Image:
    height, width = image.shape[:2]
    step = -(-max(height, width) // longest)
    if step == 1:
        return image
    small = (max(width // step, 1), max(height // step, 1))
    thinned: Image = cv2.resize(image, small, interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)
    return thinned


def _of_image(image: Image) -> tuple[float, ...]:
    """Sources: variance of the Laplacian as a focus measure: Pech-Pacheco et al., ICPR 2000. Noise: Immerkær, "Fast
    noise variance estimation", Computer Vision and Image Understanding 64 (1996): the mean absolute response to the
    difference of two Laplacians, which neither flat areas nor straight edges answer to."""
    gray = cv2.cvtColor(_thin(image, GREY_SIDE), cv2.COLOR_BGR2GRAY)
    share = cv2.calcHist([gray], [0], None, [256], [0, 256]).ravel().astype(np.float64) / gray.size
    brightness = float(share @ _LEVELS)
    contrast = math.sqrt(float(share @ (_LEVELS - brightness) ** 2))
    present = share[share > 0]
    entropy = abs(float((present * np.log2(present)).sum()))
    # cv2.meanStdDev of 16-bit numbers, or of three channels, takes ten times as long as these.
    laplacian = cv2.Laplacian(gray, cv2.CV_16S)
    sharpness = cv2.norm(laplacian, cv2.NORM_L2SQR) / gray.size - cv2.mean(laplacian)[0] ** 2
    response = cv2.sepFilter2D(gray, cv2.CV_16S, _SECOND_DIFFERENCE, _SECOND_DIFFERENCE, dst=laplacian)
    noise = math.sqrt(math.pi / 2) / 6 * cv2.norm(response, cv2.NORM_L1) / gray.size
    planes = cv2.split(_thin(image, COLOUR_SIDE))
    blue, green, red = (cv2.mean(plane)[0] for plane in planes)
    most = cv2.mean(cv2.max(cv2.max(planes[0], planes[1]), planes[2]))[0]
    least = cv2.mean(cv2.min(cv2.min(planes[0], planes[1]), planes[2]))[0]
    saturation = 1 - least / most if most else 0.0
    return brightness, contrast, red, green, blue, saturation, sharpness, noise, entropy


def _of_boxes(found: Detections, width: int, height: int) -> tuple[float, ...]:
    count = len(found)
    if not count:
        return (0.0, 0.0, *[math.nan] * (len(PREDICTION_FEATURES) - 2))
    scores = found.scores.astype(np.float64)
    boxes: NDArray[np.float64] = found.boxes.astype(np.float64)
    # A box at the border may be clipped to nothing; it still has a place and a shape of one pixel at least.
    sizes = boxes[:, 2:] - boxes[:, :2]
    shapes = sizes.clip(1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height)
    middle = centres.mean(0)
    return (
        float(count),
        float(len(np.unique(found.classes))),
        float(scores.mean()),
        float(scores.min()),
        float(scores.max()),
        float(scores.std()),
        float(sizes.prod(1).mean() / (width * height)),
        float(np.log(shapes[:, 0] / shapes[:, 1]).mean()),
        float(middle[0]),
        float(middle[1]),
        math.sqrt(float(((centres - middle) ** 2).sum(1).mean())),
    )
