"""Encoded bytes → what everybody will see in them, or the reason why not.

Training and serving read images by `cv2.imdecode`, so that is what counts here; Pillow is the stricter judge of
damage, and tells what cv2 does not (frames, orientation, bit depth). Bytes of a plain file, in which both see the same,
are kept. Everything else that can be read is stored again as 8-bit RGB, because readers differ on it:

- EXIF orientation is applied: cv2 turns JPEG and PNG by itself, not WebP, and Pillow turns nothing. Labels refer to
  the upright image, as they do in ultralytics and in every labelling tool that shows it.
- 16 bits become 8 by taking the high byte, and transparency is dropped, as cv2 does it; CMYK, palettes, TIFF, the first
  picture of an MPO and a GIF of one frame become what they look like. Colour profiles are ignored, as they are by cv2.
- A JPEG becomes a JPEG of quality 95 without subsampling, the rest PNG. A wrong file name only corrects the suffix.
- What follows the end of a JPEG is cut off: ultralytics takes such a file for damaged and encodes it anew.
"""

import hashlib
import io
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import open as open_image  # by its own name: ultralytics puts another one in its place

from ..recipes.detection.rejected import Rejected

Pixels = npt.NDArray[np.uint8]
FORMATS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif", "GIF": ".gif"}
OPENED = tuple(form for form in FORMATS if form != "MPO")  # Pillow finds an MPO by opening a JPEG
PLAIN = ("JPEG", "PNG", "BMP", "WEBP")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112
END_OF_JPEG = b"\xff\xd9"
SMALLEST = 10
"""Pixels a side; ultralytics silently drops what is smaller."""

AGREE = 2
"""Levels by which two decoders of a lossy format may differ."""


@dataclass(frozen=True)
class Picture:
    """An image that is fit to be used.

    Args:
        width: Of the upright image, in pixels.
        height: Of the upright image, in pixels.
        pixels: SHA-256 of the decoded pixels: equal for copies, whatever their format.
        content: What to store: the bytes as they were, or the image encoded anew.
        suffix: Of the true format.
    """

    width: int
    height: int
    pixels: str
    content: bytes
    suffix: str


def read(content: bytes, max_megapixels: float) -> Picture:
    """Decode an image and settle what is to be stored.

    Raises:
        Rejected: It is empty, no image, too large, too small, animated, truncated or damaged.
    """
    if not content:
        raise Rejected("empty", "the file has no bytes")
    image, orientation = _open(content, max_megapixels)
    _load(image)
    form = str(image.format)
    mine = _decode(content)
    if mine is None and image.mode in DEEP:
        raise Rejected(
            "undecodable", f"cv2 cannot read this {form} of mode {image.mode}, and training and serving use cv2"
        )
    if mine is not None and _plain(content, image, orientation) and _agree(mine, image):
        ended = _ended(content, form)
        # A damaged file may hold an end mark before its true end: what is cut off must not be missed.
        if len(ended) == len(content) or np.array_equal(_decode(ended), mine):  # type: ignore[arg-type]
            return _picture(mine, ended, FORMATS[form])
    if mine is None or (orientation > 1 and image.mode not in DEEP):
        mine = _upright(image)
    return _picture(mine, *_encode(mine, form))


def thumbnail(content: bytes, max_megapixels: float, side: int = 192) -> bytes | None:
    """A small JPEG of whatever can be drawn of an image, the first frame of several; None if nothing can."""
    try:
        image, _ = _open(content, max_megapixels, refuse=False)
        image.draft("RGB", (side, side))
        _load(image)
        small = cv2.cvtColor(_upright(image), cv2.COLOR_BGR2RGB)
    except Rejected:
        return None
    picture = Image.fromarray(small)
    picture.thumbnail((side, side))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=70)
    return encoded.getvalue()


def _open(content: bytes, max_megapixels: float, refuse: bool = True) -> tuple[Image.Image, int]:
    """Read the header alone, so that a small file which claims to be huge costs nothing."""
    Image.MAX_IMAGE_PIXELS = None  # its warning and its limit are replaced by ours
    try:
        image = open_image(io.BytesIO(content), formats=OPENED)
    except UnidentifiedImageError as error:
        known = "JPEG, PNG, BMP, WebP, TIFF or GIF"
        raise Rejected("not-an-image", f"the file begins with {content[:12]!r} and is no {known}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on damaged headers
        raise _damage(error) from error
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        megapixels = width * height / 1e6
        raise Rejected(
            "too-large", f"it is {width} x {height}, {megapixels:.1f} megapixels; max_megapixels is {max_megapixels:g}"
        )
    if min(width, height) < SMALLEST and refuse:
        raise Rejected("too-small", f"it is {width} x {height}, and the least side is {SMALLEST} pixels")
    try:
        frames = int(getattr(image, "n_frames", 1))
        orientation = int(image.getexif().get(ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception as error:
        raise _damage(error) from error
    if frames > 1 and image.format != "MPO" and refuse:
        raise Rejected("animated", f"it is a {image.format} of {frames} frames, and labels tell of one")
    return image, orientation if 1 <= orientation <= 8 else 1


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _damage(error) from error


def _damage(error: Exception) -> Rejected:
    words = str(error)[:80] or type(error).__name__
    return Rejected("truncated" if "truncated" in words else "damaged", f"it cannot be decoded ({words})")


def _decode(content: bytes) -> Pixels | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _plain(content: bytes, image: Image.Image, orientation: int) -> bool:
    deep = image.format == "PNG" and content[24] == 16  # Pillow hides the depth of RGB
    return (
        image.format in PLAIN
        and image.mode in ("RGB", "L")
        and orientation == 1
        and not deep
        and "transparency" not in image.info
    )


def _agree(mine: Pixels, image: Image.Image) -> bool:
    theirs = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return mine.shape == theirs.shape and cv2.norm(mine, cv2.cvtColor(theirs, cv2.COLOR_RGB2BGR), cv2.NORM_INF) <= AGREE


def _upright(image: Image.Image) -> Pixels:
    """The first frame as 8-bit BGR, turned as its EXIF says."""
    try:
        turned = ImageOps.exif_transpose(image) or image
        colours = turned.convert("RGBA").convert("RGB") if "transparency" in turned.info else turned.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise _damage(error) from error
    return np.asarray(cv2.cvtColor(np.asarray(colours), cv2.COLOR_RGB2BGR), np.uint8)


def _ended(content: bytes, form: str) -> bytes:
    """A JPEG without what cameras append to it, at which no decoder looks."""
    if form != "JPEG" or content.endswith(END_OF_JPEG):
        return content
    return content[: content.rfind(END_OF_JPEG) + len(END_OF_JPEG)]


def _encode(pixels: Pixels, form: str) -> tuple[bytes, str]:
    if form in ("JPEG", "MPO"):
        full = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        return cv2.imencode(".jpg", pixels, full)[1].tobytes(), ".jpg"
    return cv2.imencode(".png", pixels)[1].tobytes(), ".png"


def _picture(pixels: Pixels, content: bytes, suffix: str) -> Picture:
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width} {height} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Picture(width, height, digest.hexdigest(), content, suffix)
