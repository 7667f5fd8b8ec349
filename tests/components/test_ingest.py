"""ingest: what people's folders look like, and that a batch is the same wherever it is read."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from kfp_flywheel.components.ingest.listing import Listing, listing
from kfp_flywheel.components.ingest.stage import MAX_LABEL, collect, look, run, watermark
from kfp_flywheel.components.runtime.artifacts import Lineage, RawBatch, RawItem
from kfp_flywheel.components.runtime.blobs import get_blob
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import DataError, UserError
from kfp_flywheel.components.runtime.records import from_lines
from kfp_flywheel.components.runtime.step import run_records
from kfp_flywheel.components.runtime.wiring import World

from tests.folders import BOX, DOCUMENT, jpeg, pair, small, write
from tests.servers import BUCKET, s3


def seen(found: Listing) -> dict[str, tuple[str | None, bool]]:
    """Split by path, and whether a label file was found."""
    return {one.path: (one.split, one.label is not None) for one in found.found}


def batch(world: World, source: Path) -> RawBatch:
    found = listing(str(source))
    looked = [look(one) for one in found.found]
    lineage = Lineage(code="test", image="local", run="test")
    return collect(world.store, str(source), found.names, looked, watermark(found, looked), lineage)


def upload(folder: Path, prefix: str) -> None:
    """As `aws s3 sync` does it."""
    for path in folder.rglob("*"):
        if path.is_file():
            key = str(Path(prefix, path.relative_to(folder)))
            boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


def test_a_folder_its_document_and_its_file_uri_are_the_same_source(tmp_path: Path) -> None:
    folder = write(tmp_path / "my data", small())
    found = listing(str(folder))
    assert len(found.found) == 12
    assert found.names == ("cat", "dog")
    assert seen(found)["images/test/09.jpg"] == ("test", True)
    for source in (f"{folder}/data.yaml", f"file://{folder}", folder.as_uri(), f"file://localhost{folder}/data.yaml"):
        assert listing(source) == found


@pytest.mark.parametrize(
    ("files", "document", "expected"),
    [
        pytest.param(
            {"a/images/x.jpg", "a/labels/x.txt", "b/images/y.jpg", "t/z.png"},
            "train: [a/images, b/images]\nval: t\nnames: {0: cat, 1: dog}",
            {"a/images/x.jpg": ("train", True), "b/images/y.jpg": ("train", False), "t/z.png": ("val", False)},
            id="list of folders, names by id",
        ),
        pytest.param(
            {"images/x.jpg", "labels/x.txt", "images/y.jpg", "labels/y.txt"},
            "train: train.txt\nval: lists/val.txt\nnc: 2\nnames: [cat, dog]",
            {"images/x.jpg": ("train", True), "images/y.jpg": ("val", True)},
            id="lists of images",
        ),
        pytest.param(
            {"set/images/train/x.jpg", "set/labels/train/x.txt"},
            "path: set\ntrain: images/train\nval: \nnames: [cat]",
            {"images/train/x.jpg": ("train", True)},
            id="path, and an empty val",
        ),
        pytest.param(
            {"train/images/x.jpg", "train/labels/x.txt", "valid/images/y.jpg", "valid/labels/y.txt"},
            "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']",
            {"train/images/x.jpg": ("train", True), "valid/images/y.jpg": ("val", True)},
            id="Roboflow's ../",
        ),
        pytest.param(
            {"x.jpg", "x.txt", "sub/y.JPEG", ".hidden.jpg", "._x.jpg", "notes.md"},
            "names: [cat]",
            {"x.jpg": (None, True), "sub/y.JPEG": (None, False)},
            id="flat, labels beside the images",
        ),
        pytest.param(
            {"images/x.jpg", "labels/x.txt", "runs/plot.png"},
            "nc: 3",
            {"images/x.jpg": (None, True)},
            id="flat, images and labels, only nc",
        ),
        pytest.param(
            {"images/pool/x.jpg", "images/exam/y.jpg"},
            "test: images/exam\nnames: [cat]",
            {"images/pool/x.jpg": (None, False), "images/exam/y.jpg": ("test", False)},
            id="a holdout is given, the rest is not",
        ),
        pytest.param(
            {"train/images/x.jpg", "valid/images/y.jpg", "test/images/z.jpg"},
            "names: [cat]",
            {
                "train/images/x.jpg": ("train", False),
                "valid/images/y.jpg": ("val", False),
                "test/images/z.jpg": ("test", False),
            },
            id="folders with the names of all splits",
        ),
        pytest.param(
            {"train/x.jpg", "val/y.jpg"},
            "names: [cat]",
            {"train/x.jpg": (None, False), "val/y.jpg": (None, False)},
            id="folders of two splits: no exam was set apart, so all are divided anew",
        ),
        pytest.param(
            {"images/images/x.jpg", "images/labels/x.txt"},
            "train: images/images\nnames: [cat]",
            {"images/images/x.jpg": ("train", True)},
            id="the last images of the path is replaced",
        ),
    ],
)
def test_folders_as_people_have_them(
    tmp_path: Path, files: set[str], document: str, expected: dict[str, tuple[str | None, bool]]
) -> None:
    lists = (
        {"train.txt": "./images/x.jpg\n\n", "lists/val.txt": "\ufeffimages/y.jpg\n"} if "train.txt" in document else {}
    )
    folder = write(tmp_path / "set", dict.fromkeys(files, "") | lists, document)
    assert seen(listing(str(folder))) == expected


def test_images_beyond_the_document_are_named_without_this_machine(tmp_path: Path) -> None:
    write(tmp_path / "disk", {"images/a/x.jpg": "", "labels/a/x.txt": BOX}, None)
    folder = write(tmp_path / "set", {}, f"train: {tmp_path}/disk/images/a\nnames: [cat]")
    assert seen(listing(str(folder))) == {"train/x.jpg": ("train", True)}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("names: [cat\nval: x", "in line 2"),
        ("just text", "holds str"),
        ("train: images/train", "names is None"),
        ("names: []", "at least one class"),
        ("names: [cat, cat]", "named cat"),
        ("names: [yes, no]", "named True, which is no text"),
        ("names: {0: cat, 2: dog}", "ids in names are [0, 2], not 0 to 1"),
        ("names: [cat]\nnc: 2", "nc is 2, and names has 1"),
        ("names: [cat]\ntrain: images/nothing", "images/nothing does not exist"),
        ("names: [cat]\ntrain: data.yaml", "is neither a folder nor a .txt list"),
        ("names: [cat]\ntrain: 3", "train is 3"),
        ("names: [cat]\npath: /nowhere/at/all", "path is /nowhere/at/all"),
        ("names: [cat]\ntrain: empty", "which has no images"),
        ("names: [cat]\ntrain: broken.txt", "line 1 of"),
        ("names: [cat]\nkpt_shape: [17, 3]", "poses"),
        ("names: [cat]\ntrain: images/train\nval: images/train", "train and val share 6 images"),
        ("names: &a [*a]", "no text"),
        ("names: [cat]\npath: only-text", "no folder"),
    ],
)
def test_a_wrong_document_is_named_before_anything_is_read(tmp_path: Path, document: str, told: str) -> None:
    folder = write(tmp_path, small() | {"empty/readme.md": "", "broken.txt": "images/not-there.jpg\n"}, document)
    with pytest.raises(DataError, match=r"Next: ") as error:
        listing(str(folder))
    assert told in error.value.message


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("/no/such/folder", "source /no/such/folder does not exist"),
        ("https://example.org/data.yaml", "only a path, file:///path, s3://bucket/folder or gs"),
        ("file://other-host/data", "only a path, file:///path, s3://bucket/folder or gs"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(source: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        listing(source)
    assert told in error.value.message


def test_a_folder_without_document_or_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"should hold one data\.yaml; found: none"):
        listing(str(tmp_path))
    write(tmp_path, {}, "names: [cat]")
    with pytest.raises(DataError, match="has no images"):
        listing(str(tmp_path))


def test_links_are_followed_within_the_source_and_refused_out_of_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", small())
    (folder / "images/train/again.jpg").symlink_to(folder / "images/train/00.jpg")
    (folder / "images/train/loop").symlink_to(folder / "images/train")
    assert "images/train/again.jpg" in seen(listing(str(folder)))

    private = tmp_path / "private.txt"
    private.write_text("secret")
    for link in ("images/train/x.jpg", "labels/train/00.txt"):
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(private)
        with pytest.raises(DataError, match="symbolic link out of the data set"):
            listing(str(folder))
        (folder / link).unlink()
    (folder / "images/train/gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match="leads nowhere"):
        listing(str(folder))


def test_folders_that_are_links_themselves_are_what_the_document_names(tmp_path: Path) -> None:
    disk = write(tmp_path / "disk", small(), None)
    folder = write(tmp_path / "set", {})
    for kind in ("images", "labels"):
        (folder / kind).symlink_to(disk / kind)
    assert len([one for one in listing(str(folder)).found if one.label]) == 12


def test_the_same_folder_elsewhere_is_the_same_batch(world: World, tmp_path: Path) -> None:
    here = write(tmp_path / "here", small())
    there = shutil.copytree(here, tmp_path / "far" / "there")
    os.utime(there / "images/train/00.jpg", (1, 1))
    one, other = batch(world, here), batch(world, there)
    assert (one.id, one.watermark, one.index) == (other.id, other.watermark, other.index)


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3():
        yield f"s3://{BUCKET}"


@pytest.mark.parametrize("document", ["", "/", "/data.yaml"])
def test_a_data_set_in_an_object_store_is_the_same_batch(
    platform: Platform, world: World, tmp_path: Path, bucket: str, document: str
) -> None:
    here = write(tmp_path / "here", small())
    upload(here, "pets")
    run(str(tmp_path / "one"), str(here), platform.line(), "run-1")
    run(str(tmp_path / "other"), f"{bucket}/pets{document}", platform.line(), "run-2")
    one, other = (RawBatch.read(str(tmp_path / name)) for name in ("one", "other"))
    assert (one.id, one.watermark, one.index) == (other.id, other.watermark, other.index)
    assert other.source == f"{bucket}/pets{document}"


def test_what_is_wrong_in_an_object_store_is_told_by_its_name_there(
    platform: Platform, tmp_path: Path, bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for source, told in ((f"{bucket}/none", f"{bucket}/none holds neither"), (bucket, f"{bucket}/data.yaml: nc is 3")):
        with pytest.raises(SystemExit) as ended:
            run(str(tmp_path / "one"), source, platform.line(), "run-1")
        assert ended.value.code == 2
        assert told in capfd.readouterr().out
        upload(write(tmp_path / "here", small(), f"nc: 3\n{DOCUMENT}"), "")


def test_an_object_named_like_a_way_out_is_refused(platform: Platform, tmp_path: Path, bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key="pets/../../x.jpg", Body=b"x")
    with pytest.raises(SystemExit) as ended:
        run(str(tmp_path / "one"), f"{bucket}/pets", platform.line(), "run-1")
    assert ended.value.code == 3


@pytest.mark.parametrize("change", ["pixels", "label", "new", "gone", "renamed", "names", "split"])
def test_every_change_of_the_source_is_another_batch(world: World, tmp_path: Path, change: str) -> None:
    folder = write(tmp_path / "set", small())
    before = batch(world, folder)
    image, label = folder / "images/train/00.jpg", folder / "labels/train/00.txt"
    if change == "pixels":
        stamp = image.stat().st_mtime
        content = bytearray(image.read_bytes())
        content[-3] ^= 1
        image.write_bytes(content)  # same size, same time: only the bytes tell
        os.utime(image, (stamp, stamp))
    elif change == "label":
        label.write_text(BOX + "1 0.2 0.2 0.1 0.1\n")
    elif change == "new":
        write(folder, pair("train", "new", 99), None)
    elif change == "gone":
        label.unlink()
    elif change == "renamed":
        image.rename(image.with_name("renamed.jpg"))
    elif change == "names":
        (folder / "data.yaml").write_text(DOCUMENT.replace("dog", "cow"))
    else:
        (folder / "data.yaml").write_text(
            DOCUMENT.replace("images/val", "images/x").replace("images/test", "images/val")
        )
        (folder / "images/test").rename(folder / "images/x")
    after = batch(world, folder)
    assert after.watermark != before.watermark
    assert after.id != before.id


def test_items_hold_bytes_label_text_and_split(world: World, tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "images/train/a.jpg": jpeg(1),
            "images/train/b.jpg": b"",
            "images/train/c.jpg": jpeg(2),
            "labels/train/a.txt": b"\xff0 0.5\n",
            "labels/train/c.txt": "7" * (MAX_LABEL + 100),
        },
        "train: images/train\nnames: [cat]",
    )
    items = from_lines(get_blob(world.store, batch(world, folder).index), RawItem)
    assert [(item.path, item.split) for item in items] == [(f"images/train/{name}.jpg", "train") for name in "abc"]
    assert get_blob(world.store, items[0].image) == jpeg(1)
    assert items[0].label == "\ufffd0 0.5\n"
    assert (items[1].image.size, items[1].label) == (0, None)
    assert items[2].label is not None
    assert len(items[2].label) == MAX_LABEL + 1


def test_a_name_that_is_not_utf8_is_carried_all_the_same(world: World, tmp_path: Path) -> None:
    folder = write(tmp_path, {}, "names: [cat]")
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg())
    items = from_lines(get_blob(world.store, batch(world, folder).index), RawItem)
    assert [item.path for item in items] == [r"caf\xe9.jpg"]


def test_a_file_that_changes_while_it_is_read_is_not_taken(world: World, tmp_path: Path) -> None:
    folder = write(tmp_path, small())
    found = listing(str(folder))
    looked = [look(one) for one in found.found]
    (folder / "images/train/00.jpg").write_bytes(jpeg(77))
    with pytest.raises(DataError, match="changed while it was read"):
        collect(world.store, str(folder), found.names, looked, "mark", Lineage(code="", image="", run=""))


def test_the_second_run_reads_the_listing_and_copies_nothing(
    platform: Platform, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "set", small())
    for name in ("one", "two"):
        run(str(tmp_path / name), str(folder), platform.line(), name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert [record.outcome for name in ("one", "two") for record in run_records(world.store, name)] == [
        "done",
        "reused",
    ]
    assert "12 images of 2 classes (6 train, 3 val, 3 test); 12 have a label file." in capsys.readouterr().out


def test_a_wrong_source_ends_the_step_with_its_reason(
    platform: Platform, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(str(tmp_path / "batch"), "https://bucket/x", platform.line(), "wrong")
    assert end.value.code == 2
    assert "source is https://bucket/x" in capsys.readouterr().out.splitlines()[-1]
    assert run_records(world.store, "wrong")[0].outcome == "failed"
    assert not (tmp_path / "batch").exists()
