"""Batch prediction: a row an image, each once, whatever is killed; nothing is predicted twice."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kfp_flywheel.components.predict import stage
from kfp_flywheel.components.predict.flow import contents as contents_of
from kfp_flywheel.components.predict.listing import Shard, freeze, read_together
from kfp_flywheel.components.predict.parts import PLACED, encode, gathered
from kfp_flywheel.components.predict.spec import PredictSpec
from kfp_flywheel.components.runtime.blobs import get_blob
from kfp_flywheel.components.runtime.config import Platform, Predict
from kfp_flywheel.components.runtime.errors import DataError, PlatformError, UserError
from kfp_flywheel.components.runtime.wiring import open_source

from tests.folders import resolution
from tests.predicting import SMALL, Ran, without
from tests.tiny import tiny_images
from tests.training import below
from tests.waiting import wait_for

NAMES = tuple(f"{camera}/{number:02d}.png" for camera in ("a", "b") for number in range(9))
TWICE, BROKEN = "b/copy.png", "b/broken.jpg"


def write(folder: Path) -> Path:
    """Twenty files: 18 images, the copy of one, and one that is no image. Beside them what is nobody's image."""
    contents = dict(zip(NAMES, tiny_images(len(NAMES)), strict=True))
    contents |= {TWICE: contents[NAMES[0]], BROKEN: b"not an image"}
    contents |= {"a/.hidden.png": b"", "a/notes.txt": b"mine"}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    ran = Ran(tmp_path_factory.mktemp("undisturbed"))
    ran.step(images)
    return ran


def test_every_image_is_a_row_as_the_package_sees_it(undisturbed: Ran, images: Path) -> None:
    contents = {name: (images / name).read_bytes() for name in (*NAMES, TWICE, BROKEN)}
    rows = undisturbed.rows
    assert without(rows, "sha256", "error") == undisturbed.asked(contents)
    assert any(row["labels"] for row in rows)
    assert {row["path"]: row["error"] for row in rows if row["error"]} == {BROKEN: "12 bytes are not an image."}
    same = [row["sha256"] for row in rows if row["path"] in (NAMES[0], TWICE)]
    assert len(same) == 2
    assert len(set(same)) == 1


def test_the_manifest_tells_what_was_predicted_by_what(undisturbed: Ran) -> None:
    made, release = undisturbed.made, undisturbed.release
    assert (made.count, made.bad, [part.count for part in made.parts]) == (20, 1, [4] * 5)
    assert (made.package, made.release) == (release.package, release.id)
    assert made.lineage.parents == (release.id, release.package)
    labels = [label for row in undisturbed.rows for label in row["labels"]]
    assert made.found == {name: labels.count(name) for name in made.names}
    assert below(os.getpid(), "ray") == []


def test_the_page_shows_counts_examples_and_what_is_unread(undisturbed: Ran) -> None:
    page = undisturbed.page
    assert "20 images" in page
    assert "1 cannot be read (5.0%)" in page
    assert BROKEN in page
    assert page.count("<img src=") == sum(count > 0 for count in undisturbed.made.found.values())
    assert "<script" not in page


def test_the_same_images_and_package_are_not_predicted_twice(undisturbed: Ran, images: Path) -> None:
    before = undisturbed.made
    undisturbed.step(images, "again")
    assert undisturbed.record("again").outcome == "reused"
    assert undisturbed.made == before
    assert "20 images" in undisturbed.page


def test_too_many_bad_images_stop_the_run_and_nothing_is_lost(
    undisturbed: Ran, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        undisturbed.step(images, "strict", max_bad_fraction=0.04)
    assert ended.value.code == 2
    said = capfd.readouterr().out
    assert "1 of 20 images cannot be read (5.0%), and max_bad_fraction is 4.0%" in said
    undisturbed.step(images, "lenient", max_bad_fraction=0.05)
    assert "Ray is up" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["images", pytest.param("parquet", marks=pytest.mark.faults)])
def test_killed_in_the_middle_it_goes_on_with_what_is_missing(
    kind: str,
    undisturbed: Ran,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, names = images, sorted((*NAMES, TWICE, BROKEN))
    if kind == "parquet":
        source = tmp_path / "images.parquet"
        parquet(source, path=names, image=[(images / name).read_bytes() for name in names])
    ran, notes = Ran(tmp_path), [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setattr(PredictSpec, "MODULE", "tests.predicting")
    monkeypatch.setenv("NOTES", str(notes[0]))
    monkeypatch.setenv("DIES_AFTER", "2")
    with pytest.raises(SystemExit) as ended:
        ran.step(source, "killed")
    assert ended.value.code == 3
    assert "SIGKILL" in ran.record("killed").sentence
    wait_for(lambda: below(os.getpid(), "ray") == [], 20)

    monkeypatch.setenv("NOTES", str(notes[1]))
    monkeypatch.setenv("DIES_AFTER", "0")
    ran.step(source, "again")
    assert "2 of 5 shards are there already" in capfd.readouterr().out
    first, second = (path.read_text().split() for path in notes)
    assert (len(first), len(second)) == (2, 3)
    assert not set(first) & set(second), "what was done is done"
    assert [row["path"] for row in ran.rows] == names
    assert [part.blob.sha256 for part in ran.made.parts] == [part.blob.sha256 for part in undisturbed.made.parts]
    assert (ran.made.id == undisturbed.made.id) is (kind == "images")


def test_parquet_is_read_row_by_row_under_its_own_names(tmp_path: Path) -> None:
    names: list[str | None] = [f"image {number}" for number in range(20)]
    contents: list[bytes | None] = [os.urandom(50) for _ in names]
    table = pa.table({"id": [*names, None], "jpeg": pa.array([*contents, None], pa.binary()), "more": range(21)})
    folder = tmp_path / "set.parquet"  # as Spark writes one
    (folder / "_temporary").mkdir(parents=True)
    pq.write_table(table.slice(0, 9), folder / "0.parquet", row_group_size=5)
    pq.write_table(table.slice(9), folder / "1.parquet")
    pq.write_table(table, folder / "_temporary" / "2.parquet")
    (folder / "_SUCCESS").touch()

    columns = {"image_column": "jpeg", "id_column": "id"}
    shards = frozen(folder, **columns)
    assert [shard.count for shard in shards] == [4, 4, 1, 4, 4, 4]
    del shards[1]  # which was predicted before
    source = open_source(str(folder))
    found = [image for some in read_together(shards) for image in contents_of(source, some, ("jpeg", "id"), 3)]
    kept = [*range(4), *range(8, 21)]
    assert [(name, content) for _, _, name, content in found] == [
        *((names[number], contents[number]) for number in kept[:-1]),
        ("1.parquet#11", None),
    ]
    places = [(shard.number, at) for shard in shards for at in range(shard.count)]
    assert [(number, at) for number, at, _, _ in found] == places


def frozen(images: Path, **config: object) -> list[Shard]:
    return freeze(Predict.of(**{**SMALL, "images": str(images), **config}))[0]


def test_only_shards_whose_images_changed_are_others(tmp_path: Path) -> None:
    here, there = write(tmp_path / "here"), write(tmp_path / "there")
    columns = ("image", "path")
    before = [shard.content(columns) for shard in frozen(here)]
    assert [shard.content(columns) for shard in frozen(there)] == before
    (here / NAMES[5]).write_bytes((here / NAMES[6]).read_bytes())
    after = [shard.content(columns) for shard in frozen(here)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True, True, True]


def test_a_parquet_file_is_read_by_one_task(tmp_path: Path) -> None:
    for name, rows in (("a", 9), ("b", 3)):
        table = pa.table({"image": pa.array([b""] * rows, pa.binary()), "path": ["x"] * rows})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    shards = frozen(tmp_path)
    assert [shard.rows for shard in shards] == [(0, 4), (4, 8), (8, 9), (0, 3)]
    assert [[shard.number for shard in some] for some in read_together([*shards[:1], *shards[2:]])] == [[0, 2], [3]]


def parquet(file: Path, /, **columns: Any) -> None:
    pq.write_table(pa.table(columns), file)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "holds neither images nor Parquet"),
        (lambda folder: (parquet(folder / "x.parquet", a=[1]), write(folder)), "holds both images and Parquet"),
        (
            lambda folder: parquet(folder / "x.parquet", a=[1], b=[2]),
            "image_column is image, and x.parquet has .* a, b",
        ),
        (lambda folder: parquet(folder / "x.parquet", image=["a"], path=["b"]), "of type string in x.parquet"),
        (lambda folder: parquet(folder / "x.parquet", image=pa.array([], pa.binary()), path=[]), "have 0 rows"),
        (lambda folder: (folder / "x.parquet").write_bytes(b"PAR1 is what it says"), "x.parquet is not a Parquet file"),
        (lambda folder: (folder / "a.png").symlink_to("/etc/hostname"), "symbolic link out of"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(make: Callable[[Path], object], told: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=told) as found:
        frozen(tmp_path)
    assert found.value.next


def settled(platform: Platform, **config: object) -> UserError:
    with pytest.raises(UserError) as found:
        stage.settled(Predict.of(**{"images": "/data", **config}), platform)
    return found.value


def test_what_cannot_work_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    here = Platform.local(tmp_path)
    there = here.but(jobs="rayjob://team")
    assert "1024, and this machine has" in settled(here, workers=64, cpus_per_worker=16).message
    assert "/data, a place of this machine" in settled(there).message
    assert "ftp://host/images, and only a path" in settled(here, images="ftp://host/images").message


def test_a_champion_that_is_not_there_is_named(tmp_path: Path) -> None:
    resolution().write(tmp_path / "resolution.json")
    with pytest.raises(UserError, match="endpoint detector has no champion"):
        stage.release_of(tmp_path / "resolution.json")
    resolution("data").write(tmp_path / "resolution.json")
    assert stage.release_of(tmp_path / "resolution.json").version == "1"


def placed(*at: tuple[int, int]) -> pa.Table:
    rows = [{"shard": shard, "at": place, "path": f"{shard}-{place}"} for shard, place in at]
    return pa.Table.from_pylist(rows, schema=PLACED)


def test_rows_come_together_in_any_order() -> None:
    shards = [Shard(number=number, files=(), rows=(0, 3)) for number in range(3)]
    order = np.random.default_rng(0).permutation(9)
    tables = [placed(*((int(one) // 3, int(one) % 3) for one in order[start : start + 2])) for start in range(0, 9, 2)]
    found = {shard.number: table["path"].to_pylist() for shard, table in gathered(tables, shards)}
    assert found == {number: [f"{number}-{at}" for at in range(3)] for number in range(3)}


@pytest.mark.parametrize("at", [[(0, 0)], [(0, 0), (0, 0)], [(0, 0), (0, 1), (0, 1)], [(0, 0), (0, 1), (1, 0)]])
def test_an_image_that_is_missing_or_comes_twice_is_an_error(at: list[tuple[int, int]]) -> None:
    shards = [Shard(number=0, files=(), rows=(0, 2))]
    with pytest.raises(PlatformError, match=r"came twice|never came back"):
        list(gathered([placed(*at)], shards))
    assert next(gathered([placed((0, 1), (0, 0))], shards))


def test_a_part_of_other_images_is_refused(undisturbed: Ran, images: Path) -> None:
    from kfp_flywheel.components.predict.parts import decode as decode_part

    content = get_blob(undisturbed.store, undisturbed.made.parts[0].blob)
    one, other = frozen(images)[:2]
    assert encode(decode_part(content, one, "part")) == content
    with pytest.raises(PlatformError, match="part is of other images than shard 1"):
        decode_part(content, other, "part")


@pytest.mark.faults
def test_a_source_that_changes_while_it_is_predicted_ends_the_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, source = Ran(tmp_path), write(tmp_path / "source")
    listed = freeze(Predict.of(**{**SMALL, "images": str(source)}))
    monkeypatch.setattr(stage, "freeze", lambda config: listed)
    (source / NAMES[7]).write_bytes((source / NAMES[8]).read_bytes())
    with pytest.raises(SystemExit) as ended:
        ran.step(source)
    assert ended.value.code == DataError.exit_code
    assert re.search(rf"{NAMES[7]} changed after it was listed", ran.record("test").sentence)


@pytest.mark.faults
def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path: Path) -> None:
    ran, contents = Ran(tmp_path), {f"{number:04d}.png": image for number, image in enumerate(tiny_images(3000))}
    (tmp_path / "images").mkdir()
    for name, content in contents.items():
        (tmp_path / "images" / name).write_bytes(content)
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: bool(list(ran.store.list("batches/parts/"))))
        for worker in below(os.getpid(), "Predicting"):
            worker.kill()
            killed.append(len(list(ran.store.list("batches/parts/"))))

    killer = threading.Thread(target=kill)
    killer.start()
    ran.step(tmp_path / "images")
    killer.join()
    assert len(killed) == 1
    assert killed[0] < 750, "it was killed too late to show anything"
    assert without(ran.rows, "sha256", "error") == ran.asked(contents)
