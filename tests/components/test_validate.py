"""validate: every kind of bad file and bad label is told from a good one, on purpose."""

import contextlib
import html
import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.ingest import stage as ingest
from kfp_flywheel.components.recipes.detection import labels
from kfp_flywheel.components.recipes.detection.rejected import Rejected
from kfp_flywheel.components.runtime.artifacts import BadItem, Box, CleanBatch, RawBatch, Sample
from kfp_flywheel.components.runtime.blobs import get_blob
from kfp_flywheel.components.runtime.config import Platform, Validate
from kfp_flywheel.components.runtime.errors import DataError
from kfp_flywheel.components.runtime.records import from_lines
from kfp_flywheel.components.runtime.step import run_records
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.components.validate import stage
from kfp_flywheel.components.validate.image import read, thumbnail
from PIL import Image, ImageFile, ImageOps

from tests.folders import BOX, Pixels, encode, jpeg, pair, picture, small, write

PHOTO = picture()
FLAT = Image.fromarray(PHOTO)
LARGE = encode(picture(width=1200, height=900), quality=95)


@pytest.fixture(autouse=True, scope="module")
def as_in_a_process_of_its_own() -> Iterator[None]:
    """Importing ultralytics, as other tests do, makes Pillow take truncated files in the whole process."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    yield
    ImageFile.LOAD_TRUNCATED_IMAGES = before


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def see_through() -> Image.Image:
    image = FLAT.convert("RGBA")
    image.putalpha(Image.fromarray(np.indices((48, 64))[1].astype(np.uint8) * 4))
    return image


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def deep(image: Pixels) -> bytes:
    return bytes(cv2.imencode(".png", image.astype(np.uint16) * 257)[1])


def seen_by_all(content: bytes) -> Pixels:
    """RGB as cv2 decodes it; Pillow must see the same, and nothing that readers treat differently is left."""
    mine = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    theirs = Image.open(io.BytesIO(content))
    assert theirs.mode in ("RGB", "L")
    assert theirs.getexif().get(0x0112, 1) not in range(2, 9)
    assert np.abs(np.asarray(theirs.convert("RGB")).astype(int) - mine).max() <= 2
    return np.asarray(mine, np.uint8)


@pytest.mark.parametrize(
    ("content", "reason", "told"),
    [
        pytest.param(b"", "empty", "no bytes", id="zero bytes"),
        pytest.param(b"this is text, not an image", "not-an-image", "begins with b'this is text", id="text named jpg"),
        pytest.param(
            b"\xff\xd8\xff\xe0" + b"\0" * 50, "not-an-image", "begins with", id="only the first bytes of a JPEG"
        ),
        pytest.param(LARGE[: len(LARGE) // 2], "truncated", "truncated", id="half a JPEG"),
        pytest.param(LARGE[:-2], "truncated", "truncated", id="a JPEG that lacks its last two bytes"),
        pytest.param(encode(PHOTO, "PNG")[:-40], "truncated", "truncated", id="a truncated PNG"),
        pytest.param(encode(PHOTO, "WEBP")[:-40], "damaged", "", id="a truncated WebP"),
        pytest.param(bomb(60_000, 60_000), "too-large", "3600.0 megapixels; max_megapixels is 50", id="bomb"),
        pytest.param(bomb(2**31 - 1, 2**31 - 1), "too-large", "megapixels", id="bomb beyond any limit"),
        pytest.param(encode(PHOTO[:9]), "too-small", "64 x 9", id="nine pixels high"),
        pytest.param(
            encode(FLAT, "GIF", save_all=True, append_images=[ImageOps.flip(FLAT)]), "animated", "2 frames", id="GIF"
        ),
        pytest.param(
            encode(FLAT, "PNG", save_all=True, append_images=[ImageOps.flip(FLAT)]), "animated", "2 frames", id="APNG"
        ),
        pytest.param(
            encode(FLAT, "WEBP", save_all=True, append_images=[ImageOps.flip(FLAT)]), "animated", "2 frames", id="WebP"
        ),
        pytest.param(
            encode(FLAT, "TIFF", save_all=True, append_images=[ImageOps.flip(FLAT)]), "animated", "2 frames", id="TIFF"
        ),
        pytest.param(encode(FLAT.convert("F"), "TIFF"), "undecodable", "mode F", id="floating point"),
    ],
)
def test_what_is_no_single_whole_image_is_refused(content: bytes, reason: str, told: str) -> None:
    with pytest.raises(Rejected) as error:
        read(content, 50)
    assert (error.value.reason, told in error.value.detail) == (reason, True), error.value.detail


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (encode(PHOTO), ".jpg"),
        (encode(PHOTO, progressive=True), ".jpg"),
        (encode(FLAT.convert("L")), ".jpg"),
        (encode(PHOTO, "PNG"), ".png"),
        (encode(FLAT.convert("L"), "PNG"), ".png"),
        (encode(PHOTO, "BMP"), ".bmp"),
        (encode(PHOTO, "WEBP"), ".webp"),
        (encode(PHOTO, exif=turned(99)), ".jpg"),
    ],
)
def test_what_everybody_reads_alike_is_kept_byte_for_byte(content: bytes, suffix: str) -> None:
    kept = read(content, 50)
    assert kept.content is content
    assert (kept.width, kept.height, kept.suffix) == (64, 48, suffix)
    seen_by_all(content)


@pytest.mark.parametrize(
    ("content", "expected", "tolerance"),
    [
        pytest.param(encode(FLAT.convert("CMYK")), PHOTO, 12, id="CMYK"),
        pytest.param(deep(PHOTO[..., ::-1]), PHOTO, 0, id="16 bits, colour"),
        pytest.param(deep(PHOTO[..., 0]), PHOTO[..., :1], 0, id="16 bits, grey: not clipped to white"),
        pytest.param(encode(FLAT.quantize(64), "PNG"), FLAT.quantize(64).convert("RGB"), 0, id="palette"),
        pytest.param(
            encode(FLAT.quantize(64), "PNG", transparency=b"\0\7"), FLAT.quantize(64).convert("RGB"), 0, id="tRNS"
        ),
        pytest.param(encode(FLAT.quantize(64), "GIF"), FLAT.quantize(64).convert("RGB"), 0, id="GIF of one frame"),
        pytest.param(encode(see_through(), "PNG"), PHOTO, 0, id="alpha is dropped"),
        pytest.param(encode(FLAT.convert("1"), "PNG"), FLAT.convert("1").convert("RGB"), 0, id="one bit"),
        pytest.param(encode(PHOTO, "TIFF"), PHOTO, 0, id="TIFF"),
        pytest.param(encode(FLAT, "MPO", save_all=True, append_images=[FLAT], quality=95), PHOTO, 12, id="MPO"),
    ],
)
def test_what_readers_treat_differently_is_stored_anew(content: bytes, expected: Pixels, tolerance: int) -> None:
    stored = read(content, 50)
    assert stored.content != content
    assert np.abs(seen_by_all(stored.content).astype(int) - np.asarray(expected)).max() <= tolerance
    assert read(stored.content, 50).content is stored.content


def test_what_a_camera_appends_to_a_jpeg_is_cut_off_and_no_pixel_changes() -> None:
    photo = encode(PHOTO)
    for tail in (b"what a camera appends", photo + b"a second picture"):
        stored = read(photo + tail, 50)
        assert stored.content.endswith(b"\xff\xd9")
        assert (seen_by_all(stored.content) == seen_by_all(photo)).all()
        assert stored.pixels == read(photo, 50).pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_applied_once(form: str, orientation: int) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(form, {})
    content = encode(FLAT, form, exif=turned(orientation), **options)
    stored = read(content, 50)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert (stored.width, stored.height) == upright.size
    assert np.abs(seen_by_all(stored.content).astype(int) - np.asarray(upright)).max() <= (12 if form == "JPEG" else 0)
    assert (stored.content is content) == (orientation == 1 and form != "TIFF")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.integers(0, 1500))
def test_whatever_the_bytes_an_image_is_read_or_refused(noise: bytes, form: str, where: int) -> None:
    content = encode(PHOTO[:12, :12], form)
    for damaged in (noise, content[:where] + noise, content[:where] + noise + content[where + len(noise) :]):
        with contextlib.suppress(Rejected):
            stored = read(damaged, 1)
            assert seen_by_all(stored.content).shape == (stored.height, stored.width, 3)
        thumbnail(damaged, 1)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("", ()),
        (" \n\n", ()),
        ("1 .5 0.5 2e-1 0.2\r\n", ((1, 0.5, 0.5, 0.2, 0.2),)),
        ("\ufeff1.0 0.5 0.5 0.2 0.2", ((1, 0.5, 0.5, 0.2, 0.2),)),
        ("0 0.5 0.5 1 1\n1 0.5 0.5 1 1", ((0, 0.5, 0.5, 1, 1), (1, 0.5, 0.5, 1, 1))),
        ("0 0.25 0.5 0.5009 0.5", ((0, pytest.approx(0.250225), 0.5, pytest.approx(0.50045), 0.5),)),
        (
            "0 0.1 0.1 0.3 0.1 0.3 0.5",
            ((0, pytest.approx(0.2), pytest.approx(0.3), pytest.approx(0.2), pytest.approx(0.4)),),
        ),
    ],
)
def test_labels_that_are_read(text: str, boxes: tuple[object, ...]) -> None:
    assert labels.parse(text, 2) == boxes


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        ("0 0.5 0.5 0.2", "label-syntax", "line 1 of its labels has 4 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "label-syntax", "has 6 numbers"),
        ("\n0 0.5 0.5 0.2 wide", "label-syntax", "line 2 of its labels holds 'wide'"),
        ("0 0.5 0.5 0_2 0.2", "label-syntax", "'0_2'"),
        ("0,0.5,0.5,0.2,0.2", "label-syntax", "which is no number"),
        ("0.5 0.5 0.5 0.2 0.2", "label-class", "which is no whole number"),
        ("2 0.5 0.5 0.2 0.2", "label-class", "data.yaml names 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "label-class", "the class -1"),
        ("nan 0.5 0.5 0.2 0.2", "label-not-finite", "'nan'"),
        ("0 0.5 inf 0.2 0.2", "label-not-finite", "'inf'"),
        ("0 1e999 0.5 0.2 0.2", "label-not-finite", "'1e999'"),
        ("0 0.5 0.5 0 0.2", "label-no-area", "width 0"),
        ("0 0.5 0.5 0.2 -0.2", "label-no-area", "height -0.2"),
        ("0 0.1 0.5 0.3 0.5 0.5 0.5", "label-no-area", "area"),
        ("0 0.9 0.5 0.4 0.2", "label-outside", "reaches from 0.7, 0.4 to 1.1, 0.6"),
        ("0 320 240 100 100", "label-outside", "look like pixels"),
        ("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n0 0.5 0.501 0.2 0.2", "label-doubled", "lines 1 and 3"),
        ("x" * (labels.MAX_CHARACTERS + 1), "label-too-long", "1 MiB"),
        ("0 .5 .5 .2 .2\n" * (labels.MAX_BOXES + 1), "label-too-long", "10001 boxes"),
    ],
)
def test_labels_that_are_refused(text: str, reason: str, told: str) -> None:
    with pytest.raises(Rejected) as error:
        labels.parse(text, 2)
    assert (error.value.reason, told in error.value.detail) == (reason, True), error.value.detail


NUMBERS = st.one_of(
    st.floats(-0.1, 1.2).map(repr),
    st.sampled_from(["0", "0.1995", "0.2005", "0.4", "0.9", "0.8"]),
    st.integers(-1, 4).map(str),
    st.sampled_from(["nan", "inf", "1e400", "٣", "0x1", "--1"]),
)
LINES = st.lists(st.lists(NUMBERS, max_size=9).map(" ".join), max_size=6).map("\n".join)


@settings(max_examples=250, deadline=None)
@given(st.one_of(st.binary(max_size=80).map(lambda raw: raw.decode(errors="replace")), st.text(max_size=80), LINES))
def test_whatever_the_text_labels_are_boxes_in_the_image_or_a_reason(text: str) -> None:
    boxes: tuple[Box, ...] = ()
    with contextlib.suppress(Rejected):
        boxes = labels.parse(text, 3)
    for kind, x, y, width, height in boxes:
        assert kind in (0, 1, 2)
        assert width > 0
        assert height > 0
        assert min(x - width / 2, y - height / 2) >= -1e-9
        assert max(x + width / 2, y + height / 2) <= 1 + 1e-9


def raw(platform: Platform, tmp_path: Path, files: Mapping[str, bytes | str]) -> Path:
    ingest.run(str(tmp_path / "raw"), str(write(tmp_path / "set", files)), platform.line(), "raw")
    return tmp_path / "raw"


def check(
    platform: Platform, world: World, tmp_path: Path, files: Mapping[str, bytes | str], limit: float = 1.0
) -> tuple[CleanBatch, dict[str, Sample], dict[str, BadItem], str]:
    """Run the step as a pipeline does; gives the batch, samples and quarantine by path, and the page."""
    batch = raw(platform, tmp_path, files)
    clean, page = tmp_path / "clean", tmp_path / "page.html"
    stage.run(str(batch), str(clean), str(page), limit, 50.0, platform.line(), "run")
    made = CleanBatch.read(clean)
    good = from_lines(get_blob(world.store, made.index), Sample)
    bad = from_lines(get_blob(world.store, made.quarantine), BadItem)
    assert made.count == len(good)
    assert made.rejected == Counter(item.reason for item in bad)
    return made, {s.path: s for s in good}, {b.path: b for b in bad}, page.read_text()


def test_a_folder_with_one_of_each_kind(platform: Platform, world: World, tmp_path: Path) -> None:
    planted: dict[str, bytes | str] = {
        "images/train/zero.jpg": b"",
        "images/train/half.jpg": LARGE[:3000],
        "images/train/notes.jpg": "just text",
        "images/train/copy.png": encode(Image.open(io.BytesIO(jpeg(0))), "PNG"),
        "images/train/leak.jpg": jpeg(9),
        "images/train/phone.heic": b"\0\0\0\x18ftypheic",
        "images/val/leak.jpg": jpeg(10),
        "images/train/really-png.jpg": encode(picture(50), "PNG"),
        "images/train/turned.jpg": encode(picture(51), exif=turned(6)),
        "labels/train/turned.txt": BOX,
        "images/train/background.jpg": jpeg(52),
    }
    made, good, bad, page = check(
        platform, world, tmp_path, small() | planted | pair("train", "far", 53, "7 .5 .5 .1 .1")
    )
    assert {path: item.reason for path, item in bad.items()} == {
        "images/train/zero.jpg": "empty",
        "images/train/half.jpg": "truncated",
        "images/train/notes.jpg": "not-an-image",
        "images/train/copy.png": "duplicate",
        "images/train/leak.jpg": "leak",
        "images/train/phone.heic": "not-an-image",
        "images/val/leak.jpg": "leak",
        "images/train/far.jpg": "label-class",
    }
    assert "images/test/09.jpg in test" in bad["images/train/leak.jpg"].detail
    assert "with other labels" in bad["images/train/leak.jpg"].detail
    assert "images/test/09.jpg" in good
    assert made.rejected == {"leak": 2, "not-an-image": 2, "duplicate": 1, "empty": 1, "label-class": 1, "truncated": 1}

    renamed = good["images/train/really-png.jpg"]
    assert renamed.image.uri.endswith(".png")
    assert get_blob(world.store, renamed.image) == planted["images/train/really-png.jpg"]
    upright = good["images/train/turned.jpg"]
    assert (upright.width, upright.height) == (48, 64)
    assert upright.boxes == ((0, 0.5, 0.5, 0.25, 0.25),)
    assert good["images/train/background.jpg"].boxes == ()
    for sample in good.values():
        assert seen_by_all(get_blob(world.store, sample.image)).shape == (sample.height, sample.width, 3)

    assert "15 of 23 images are fit to be used" in page
    assert page.count("<img ") == 4  # both leaks, the copy, and the one with a wrong class
    assert "<script" not in page
    assert "http" not in page


@pytest.mark.parametrize("first", ["train", "val", "test"])
def test_the_copy_that_is_asked_in_the_exam_is_the_one_that_stays(
    platform: Platform, world: World, tmp_path: Path, first: str
) -> None:
    files = small() | {
        f"images/{split}/a{'0' if split == first else '1'}.jpg": jpeg(60) for split in ("train", "val", "test")
    }
    _, good, bad, _ = check(platform, world, tmp_path, files)
    assert {item.reason for item in bad.values()} == {"leak"}
    assert len(bad) == 2
    assert [path for path in good if "/a" in path] == [f"images/test/a{'0' if first == 'test' else '1'}.jpg"]


def test_too_many_bad_items_stop_the_run_with_the_reasons_and_their_pictures(
    platform: Platform, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {f"images/train/{name}.jpg": b"" for name in ("x", "y")} | pair("train", "z", 61, "0 1 1 1 1")
    with pytest.raises(SystemExit) as end:
        check(platform, world, tmp_path, small() | bad, limit=0.1)
    assert end.value.code == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert "20.0% of 15 images are bad, and max_bad_fraction is 10.0%" in last
    assert "2x empty (images/train/x.jpg: the file has no bytes); 1x label-outside (images/train/z.jpg" in last
    assert not (tmp_path / "clean").exists()
    assert "images/train/z.jpg" in (tmp_path / "page.html").read_text()
    assert run_records(world.store, "run")[0].outcome == "failed"
    stage.run(
        str(tmp_path / "raw"),
        str(tmp_path / "clean"),
        str(tmp_path / "page"),
        0.2,
        50.0,
        platform.line(),
        "2",
    )
    assert CleanBatch.read(tmp_path / "clean").count == 12


def test_data_without_any_use_is_refused(platform: Platform, world: World, tmp_path: Path) -> None:
    config = Validate(max_bad_fraction=1.0)
    batch = RawBatch.read(
        raw(platform, tmp_path / "one", {"images/train/a.jpg": b"", "images/train/b.jpg": jpeg(1)} | small())
    )
    nothing = {"images/train/a.jpg": b"", "images/val/b.jpg": b"1", "images/test/c.jpg": b"2"}
    useless = RawBatch.read(raw(platform, tmp_path / "two", nothing))
    verdict = stage.examine(world.store, useless, config)
    with pytest.raises(DataError, match="none of 3 images can be used; most often: 2x not-an-image"):
        stage.judge(verdict, useless, config)
    unlabelled = RawBatch.read(
        raw(platform, tmp_path / "three", {name: content for name, content in small().items() if "labels" not in name})
    )
    verdict = stage.examine(world.store, unlabelled, config)
    with pytest.raises(DataError, match="no labels: none of the 12 usable images"):
        stage.judge(verdict, unlabelled, config)
    stage.judge(stage.examine(world.store, batch, config), batch, config)


def test_hostile_names_are_only_text_on_the_page(platform: Platform, world: World, tmp_path: Path) -> None:
    name = "images/train/<img src=x onerror=alert(1)>&\"'.jpg"
    _, _, bad, page = check(platform, world, tmp_path, small() | {name: "<b>text</b>"})
    assert list(bad) == [name]
    assert html.escape(name) in page
    assert "<img src=x" not in page
    assert "<b>text" not in page


def test_every_reason_gets_a_picture_before_one_gets_two(tmp_path: Path) -> None:
    from kfp_flywheel.components.validate.page import render

    bad = [BadItem(path=f"{n:03d}.jpg", image=None, reason="duplicate", detail="") for n in range(400)]
    bad.append(BadItem(path="zzz.jpg", image=None, reason="animated", detail=""))
    drawn: list[str] = []
    page = render(1000, Counter(item.reason for item in bad), bad, lambda item: drawn.append(item.path))  # type: ignore[func-returns-value]
    assert drawn[:3] == ["zzz.jpg", "000.jpg", "001.jpg"]
    assert len(drawn) == 30
    assert "and 101 more" in page


def test_the_second_run_reuses_the_batch_and_still_gives_the_page(
    platform: Platform, world: World, tmp_path: Path
) -> None:
    files = small() | {"images/train/zero.jpg": b""}
    _, _, _, first = check(platform, world, tmp_path, files)
    (tmp_path / "page.html").unlink()
    _, _, _, second = check(platform, world, tmp_path, files)
    assert [record.outcome for record in run_records(world.store, "run")] == ["done", "reused"]
    assert first == second


def test_another_label_is_another_batch_and_another_folder_is_not(
    platform: Platform, world: World, tmp_path: Path
) -> None:
    one = check(platform, world, tmp_path / "one", small())[0]
    same = check(platform, world, tmp_path / "two", small())[0]
    other = check(platform, world, tmp_path / "three", small() | {"labels/train/00.txt": "1 0.5 0.5 0.2 0.2"})[0]
    assert one.id == same.id != other.id
