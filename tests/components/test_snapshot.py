"""snapshot: splits that nobody can argue with, ids that hold anywhere, versions that are whole or not there."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.artifacts import (
    Blob,
    CleanBatch,
    DatasetVersion,
    Lineage,
    Sample,
    Split,
    content_id,
)
from kfp_flywheel.components.runtime.blobs import get_blob, put_blob
from kfp_flywheel.components.runtime.config import Platform, Snapshot
from kfp_flywheel.components.runtime.decisions import Outcome, conclude
from kfp_flywheel.components.runtime.errors import DataError, UserError
from kfp_flywheel.components.runtime.ports import Store
from kfp_flywheel.components.runtime.records import from_lines, to_lines
from kfp_flywheel.components.runtime.wiring import World, open_store
from kfp_flywheel.components.snapshot import stage
from kfp_flywheel.components.snapshot.split import assign, divided, drawn

from tests.folders import DOCUMENT, jpeg, small, through, write

LINEAGE = Lineage(code="test", image="local", run="test")
BY_SCENE = Snapshot(group_pattern=r"^([^/]+)/")


def sample(path: str, split: Split | None = None, image: str = "", label: int = 0, where: str = "file:///a") -> Sample:
    sha256 = content_id(image or path) * 4
    return Sample(
        path=path,
        image=Blob(uri=f"{where}/{sha256}", sha256=sha256, size=1),
        width=10,
        height=10,
        boxes=((label, 0.5, 0.5, 0.1, 0.1),),
        split=split,
        group="",
    )


def scenes(count: int, each: int = 2) -> list[Sample]:
    return [sample(f"scene-{scene}/{number}.jpg") for scene in range(count) for number in range(each)]


def clean(store: Store, samples: list[Sample], names: tuple[str, ...] = ("cat", "dog")) -> CleanBatch:
    index = put_blob(store, to_lines(samples))
    identity = content_id([s.plain() for s in samples])
    return CleanBatch(
        id=identity, lineage=LINEAGE, names=names, count=len(samples), index=index, rejected={}, quarantine=index
    )


def freeze(store: Store, samples: list[Sample], config: Snapshot = BY_SCENE) -> DatasetVersion:
    return stage.freeze(store, clean(store, samples), config, LINEAGE)


SAMPLES = st.lists(
    st.builds(
        lambda scene, number, split: sample(f"{scene}/{number}.jpg", split),
        st.integers(0, 6),
        st.integers(0, 40),
        st.sampled_from([None, None, "train", "val", "test"]),
    ),
    max_size=40,
    unique_by=lambda s: s.path,
)


@settings(deadline=None)
@given(SAMPLES, st.randoms(use_true_random=False))
def test_a_split_depends_on_no_order_keeps_what_was_given_and_divides_no_group(
    samples: list[Sample], random: object
) -> None:
    done = assign(samples, BY_SCENE)
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign(shuffled, BY_SCENE) == done
    assert all(s.split is not None and s.group for s in done)
    before = {s.path: s.split for s in samples}
    assert all(before[s.path] in (None, s.split) for s in done)
    given_to: dict[str, set[str | None]] = {}
    for s in samples:
        given_to.setdefault(s.path.split("/")[0], set()).add(s.split)
    for group in divided(done):
        assert len(given_to[group] - {None}) > 1  # only whoever gave the splits can divide a group


@settings(deadline=None)
@given(SAMPLES, SAMPLES)
def test_more_data_moves_no_sample_of_groups_that_were_hashed(samples: list[Sample], more: list[Sample]) -> None:
    before = [s.but(split=None) for s in samples]
    added = [s for s in more if s.path not in {b.path for b in before}]
    grown = {s.path: s.split for s in assign(before + added, BY_SCENE)}
    bound = {s.path.split("/")[0] for s in added if s.split}
    for s in assign(before, BY_SCENE):
        if s.group not in bound:
            assert grown[s.path] == s.split


def test_groups_follow_a_member_whose_split_was_given() -> None:
    done = assign([*scenes(40), sample("scene-7/x.jpg", "test"), sample("scene-8/x.jpg", "train")], BY_SCENE)
    assert {s.split for s in done if s.group == "scene-7"} == {"test"}
    assert {s.split for s in done if s.group == "scene-8"} == {"train"}


def test_shares_are_about_what_was_asked_for() -> None:
    counts = Counter(s.split for s in assign(scenes(4000, 1), Snapshot(val_fraction=0.1, test_fraction=0.3)))
    assert counts["test"] == pytest.approx(1200, abs=120)
    assert counts["val"] == pytest.approx(400, abs=80)


def test_the_same_groups_lie_where_they_lay_years_ago() -> None:
    """Written down once: whoever changes this moves images from training into the exam."""
    letters = {"train": "t", "val": "v", "test": "E"}
    splits = "".join(letters[drawn(f"group-{number}", Snapshot())] for number in range(24))
    assert splits == "ttttttvvttvtEEtttttttEEt"


def test_another_validation_share_leaves_the_holdout_alone() -> None:
    def holdout(share: float) -> list[str]:
        return [s.path for s in assign(scenes(300), Snapshot(val_fraction=share)) if s.split == "test"]

    assert holdout(0.1) == holdout(0.4)


def test_a_renamed_copy_and_a_path_without_group_stay_where_the_image_is() -> None:
    one = assign([sample("a.jpg", image="x")], BY_SCENE)[0]
    other = assign([sample("deep/er/b.jpg", image="x")], Snapshot())[0]
    assert one.split == other.split
    assert one.group == other.group == one.image.sha256


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False))
def test_an_id_holds_on_any_machine_and_in_any_order(tmp_path_factory: pytest.TempPathFactory, random: object) -> None:
    folder = tmp_path_factory.mktemp("store")
    moved = [s.but(image=s.image.but(uri=f"s3://b/{s.path}")) for s in scenes(40)]
    random.shuffle(moved)  # type: ignore[attr-defined]
    here = freeze(open_store(f"file://{folder}/here"), scenes(40))
    there = freeze(open_store(f"file://{folder}/there"), moved)
    assert here.id == there.id
    assert here.counts == there.counts


@pytest.mark.parametrize(
    "change",
    [{"boxes": ((1, 0.5, 0.5, 0.1, 0.1),)}, {"split": "val"}, {"image": Blob(uri="", sha256="0" * 64, size=1)}],
)
def test_an_id_changes_with_what_it_stands_for(world: World, change: dict[str, object]) -> None:
    samples = scenes(40)
    before = freeze(world.store, samples)
    train = next(s for s in assign(samples, BY_SCENE) if s.split == "train" and "/0" in s.path)
    changed = [s.but(**change) if s.path == train.path else s for s in samples]
    assert freeze(world.store, changed).id != before.id
    names = stage.freeze(world.store, clean(world.store, samples, ("dog", "cat")), BY_SCENE, LINEAGE)
    assert names.id != before.id


def test_the_holdout_is_frozen_with_its_version(world: World) -> None:
    made = freeze(world.store, scenes(40))
    index = from_lines(get_blob(world.store, made.index), Sample)
    holdout = from_lines(get_blob(world.store, made.holdouts[0].index), Sample)
    assert holdout == [s for s in index if s.split == "test"]
    assert (made.holdouts[0].dataset, made.holdouts[0].count) == (made.id, len(holdout))
    assert made.counts == Counter(s.split for s in index)
    assert [s.path for s in index] == sorted(s.path for s in index)


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        ([sample("a", "train"), sample("b", "val")], "no test images (1 train, 1 val, 0 test"),
        ([sample("a", "test"), sample("b", "val")], "no train images"),
        ([sample("a", "train")], "no val and no test images"),
        ([sample("only")], "test_fraction is 0.15"),
        ([], "no train and no val and no test images"),
    ],
)
def test_a_version_without_one_of_the_splits_is_refused(world: World, samples: list[Sample], told: str) -> None:
    with pytest.raises(DataError, match="Next: ") as error:
        freeze(world.store, samples, Snapshot())
    assert told in error.value.message
    assert not list(world.store.list("manifests/"))


def test_training_images_without_any_box_are_refused(world: World) -> None:
    samples = [sample("a", "train").but(boxes=()), sample("b", "val"), sample("c", "test")]
    with pytest.raises(DataError, match="none of the 1 training images has a box"):
        freeze(world.store, samples)


def test_a_decided_version_is_said_with_its_decision(
    platform: Platform, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "set", small(), DOCUMENT.replace("dog]", "dog, cow]"))
    assert through(platform, source, tmp_path) == "new"
    assert "6 train images with 6 boxes, 3 val images" in capsys.readouterr().out
    made = DatasetVersion.read(tmp_path / "dataset")
    outcome = Outcome(
        dataset=made.id, config="config", step="evaluate", decision="fail", reason="mAP50 0.1 is below 0.5."
    )
    conclude(world.store, outcome)
    assert through(platform, source, tmp_path) == "decided"
    last = json.loads(capsys.readouterr().out.splitlines()[-1].split("reused: ")[1])
    assert "No train box of 1 of 3 classes: cow." in last
    assert last.endswith("evaluate decided on it before, with this configuration: fail, mAP50 0.1 is below 0.5.")
    assert through(platform, source, tmp_path, config="another") == "new"


# What grows. ------------------------------------------------------------------------------------------------------


def grow(
    store: Store, samples: list[Sample], parent: DatasetVersion, config: Snapshot = BY_SCENE, **batch: tuple[str, ...]
) -> DatasetVersion:
    return stage.freeze(store, clean(store, samples, **batch), config, LINEAGE, parent)


def index(store: Store, made: DatasetVersion) -> list[Sample]:
    return from_lines(get_blob(store, made.index), Sample)


def exam(store: Store, made: DatasetVersion, number: int = 0) -> list[Sample]:
    return from_lines(get_blob(store, made.holdouts[number].index), Sample)


def streets(first: int = 0, count: int = 40) -> list[Sample]:
    return [sample(f"street-{street}/{number}.jpg") for street in range(first, first + count) for number in range(2)]


@settings(deadline=None, max_examples=60)
@given(SAMPLES, st.randoms(use_true_random=False))
def test_what_grows_keeps_every_old_sample_and_every_old_exam(
    tmp_path_factory: pytest.TempPathFactory, more: list[Sample], random: object
) -> None:
    store = open_store(f"file://{tmp_path_factory.mktemp('store')}")
    parent = freeze(store, [*scenes(40), *streets()])
    batch = [*more, *streets(40, 20)]
    made = grow(store, batch, parent)
    shuffled = list(batch)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = grow(store, shuffled, parent)
    assert again.but(lineage=made.lineage) == made

    old, now = index(store, parent), index(store, made)
    assert [s for s in now if s in old] == old
    known = {s.image.sha256 for s in old}
    new = [s for s in now if s.image.sha256 not in known]
    assert {s.image.sha256 for s in new} == {s.image.sha256 for s in batch} - known
    assert made.holdouts[1:] == parent.holdouts
    assert exam(store, made) == [s for s in new if s.split == "test"]
    assert made.counts == Counter(s.split for s in now)
    assert made.id != parent.id
    given = {s.image.sha256: s.split for s in batch}
    assert all(given[s.image.sha256] in (None, s.split) for s in new)


def test_a_group_of_the_parent_is_followed_whatever_the_batch_says(world: World) -> None:
    parent = freeze(world.store, [*scenes(40), sample("learned/1", "train"), sample("asked/1", "test")])
    more = ["learned/2", "asked/2"]
    batch = [*streets(), *map(sample, more), sample("learned/3", "test"), sample("asked/3", "train")]
    made = {s.path: s.split for s in index(world.store, grow(world.store, batch, parent))}
    assert (made["learned/2"], made["asked/2"]) == ("train", "test")
    assert (made["learned/3"], made["asked/3"]) == ("test", "train")  # as whoever gave them wanted it


def test_an_image_that_was_there_keeps_its_split_and_its_label(world: World) -> None:
    parent = freeze(world.store, scenes(40))
    before = index(world.store, parent)[0]
    other = next(split for split in ("train", "test") if split != before.split)
    copy = sample("elsewhere.jpg", other, before.path, label=1)
    assert copy.image.sha256 == before.image.sha256
    made = grow(world.store, [copy, *streets()], parent)
    assert [s for s in index(world.store, made) if s.image.sha256 == copy.image.sha256] == [before]


def test_holdouts_are_handed_on_the_newest_first(world: World) -> None:
    first = freeze(world.store, scenes(40))
    second = grow(world.store, streets(), first)
    third = grow(world.store, streets(40), second)
    assert [holdout.dataset for holdout in third.holdouts] == [third.id, second.id, first.id]
    assert third.holdouts[1:] == second.holdouts
    asked = [s.image.sha256 for number in range(3) for s in exam(world.store, third, number)]
    assert len(asked) == len(set(asked)) == third.counts["test"]


def test_the_same_images_frozen_at_once_are_another_exam(world: World) -> None:
    parent = freeze(world.store, scenes(40))
    made = grow(world.store, streets(), parent)
    at_once = freeze(world.store, [*scenes(40), *streets()])
    assert index(world.store, at_once) == index(world.store, made)
    assert at_once.id != made.id


def test_without_a_new_image_it_is_the_parent(world: World) -> None:
    parent = freeze(world.store, scenes(40))
    assert grow(world.store, [s.but(split="test", boxes=()) for s in scenes(20)], parent) == parent


def test_other_classes_than_the_parents_are_refused(world: World) -> None:
    parent = freeze(world.store, scenes(40))
    for names in (("dog", "cat"), ("cat", "dog", "cow")):
        with pytest.raises(UserError, match="the classes cat, dog; the new images have " + ", ".join(names)):
            grow(world.store, scenes(3), parent, names=names)


@pytest.mark.parametrize(("split", "remedy"), [("train", "name test in data.yaml"), (None, "raise val_fraction or")])
def test_new_images_without_an_exam_are_refused(world: World, split: Split | None, remedy: str) -> None:
    parent = freeze(world.store, scenes(40))
    with pytest.raises(DataError, match="none of the 3 new images would be a test image") as error:
        grow(world.store, [sample(path, split) for path in ("a", "b", "c")], parent, Snapshot(test_fraction=0.001))
    assert error.value.next.startswith(remedy)


def test_new_images_need_no_training_and_validation_image_of_their_own(world: World) -> None:
    parent = freeze(world.store, scenes(40))
    made = grow(world.store, [sample("new", "test")], parent)
    assert made.counts == parent.counts | {"test": parent.counts["test"] + 1}


def more() -> dict[str, bytes | str]:
    """Four images that `small` has, and twelve more, all without splits."""
    label = "0 0.5 0.5 0.25 0.25\n"
    numbers = range(8, 24)
    return {f"images/{n}.jpg": jpeg(n) for n in numbers} | {f"labels/{n}.txt": label for n in numbers}


def test_a_run_grows_the_champions_data(
    platform: Platform, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    through(platform, write(tmp_path / "set", small()), tmp_path)
    parent = DatasetVersion.read(tmp_path / "dataset")
    source = write(tmp_path / "more", more(), "names: [cat, dog]\n")

    def again(champion: str = parent.id, **how: str) -> tuple[str, str]:
        capsys.readouterr()
        state = through(platform, source, tmp_path, champion=champion, test_fraction=0.3, **how)
        return state, capsys.readouterr().out.splitlines()[-1]

    state, said = again()
    made = DatasetVersion.read(tmp_path / "dataset")
    assert state == "new"
    assert made.lineage.parents == (CleanBatch.read(tmp_path / "clean").id, parent.id)
    assert made.holdouts[1:] == parent.holdouts
    assert f"It grew from {parent.id} by 12 images, {made.holdouts[0].count} of which are its own holdout." in said
    assert "4 were there before and keep their splits and labels." in said

    state, said = again()
    assert (state, "reused: " in said) == ("new", True)
    assert f"It grew from {parent.id} by 12 images" in said
    assert DatasetVersion.read(tmp_path / "dataset") == made

    # It was promoted, and the same images come by again.
    outcome = Outcome(dataset=made.id, config="config", step="rollout", decision="promote", reason="It is better.")
    conclude(world.store, outcome)
    state, said = again(made.id)
    assert DatasetVersion.read(tmp_path / "dataset") == made
    assert state == "decided"
    assert "It had all 16 images of the batch, which keep their splits and labels: nothing is new." in said
    assert again(made.id, config="another")[0] == "new"

    # Another champion is another parent.
    through(platform, write(tmp_path / "other", {**small(), "images/train/00.jpg": jpeg(99)}), tmp_path)
    other = DatasetVersion.read(tmp_path / "dataset")
    assert "reused: " not in again(other.id)[1]
    assert DatasetVersion.read(tmp_path / "dataset").holdouts[1:] == other.holdouts


def test_without_a_champion_a_version_stands_alone_and_says_so(
    platform: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    through(platform, write(tmp_path / "set", small()), tmp_path)
    alone = DatasetVersion.read(tmp_path / "dataset")
    paths = [str(tmp_path / name) for name in ("clean", "champion", "dataset")]
    assert stage.run(*paths, "config", 0.15, 0.15, "", "champion", platform.line(), "run") == "new"
    assert DatasetVersion.read(tmp_path / "dataset") == alone
    assert "grow_from is champion, and there is none yet" in capsys.readouterr().out.splitlines()[-1]


# What happens in the middle of it. --------------------------------------------------------------------------------

CHILD = """
import itertools, os, signal, sys
from pathlib import Path
from kfp_flywheel.components.runtime import wiring
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.config import Platform

doomed, when = int(sys.argv[3]), sys.argv[4]
numbers = itertools.count(1)  # several threads write
link = os.link

def deadly(source, target):
    number = next(numbers)
    if number == doomed and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    link(source, target)
    if number == doomed:
        os.kill(os.getpid(), signal.SIGKILL)

os.link = deadly  # the instant at which an object appears
from tests.folders import through
through(Platform.local(Path(sys.argv[1]) / "flywheel"), Path(sys.argv[1]) / "set", Path(sys.argv[2]))
print("written", next(numbers) - 1)
"""


def child(folder: Path, doomed: int = 0, when: str = "before") -> subprocess.CompletedProcess[str]:
    (folder / "out").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(folder / "out"), str(doomed), when],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def manifests(folder: Path) -> dict[str, str]:
    """What the stages gave, without lineage."""
    given = {name: (folder / "out" / name).read_text() for name in ("batch", "clean", "dataset")}
    without = {name: json.dumps(json.loads(text) | {"lineage": None}) for name, text in given.items()}
    return without | {"page": (folder / "out" / "page.html").read_text()}


def whole(store: Store) -> None:
    """Every blob hashes to its name."""
    for key in store.list("blobs/"):
        name = key.rpartition("/")[2].split(".")[0]
        content = store.get(f"{store.root}/{key}")
        get_blob(store, Blob(uri=f"{store.root}/{key}", sha256=name, size=len(content)))


def survive(folder: Path, doomed: int, when: str, undisturbed: dict[str, str]) -> None:
    """Kill the stages at one write, run them again, and find what an undisturbed run gives."""
    shutil.rmtree(folder / "flywheel")
    shutil.rmtree(folder / "out")
    assert child(folder, doomed, when).returncode == -9
    store = open_store(f"file://{folder}/flywheel/store")
    whole(store)
    through(Platform.local(folder / "flywheel"), folder / "set", folder / "out")
    whole(store)
    assert manifests(folder) == undisturbed


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, dict[str, str]]:
    """A folder with a data set, the number of writes of an undisturbed run, and what it gave."""
    folder = tmp_path_factory.mktemp("disturbed")
    write(folder / "set", small())
    done = child(folder)
    assert done.returncode == 0, done.stderr
    return folder, int(done.stdout.splitlines()[-1].split()[1]), manifests(folder)


@pytest.mark.parametrize(("share", "when"), [(0.3, "before"), (0.75, "after"), (0.95, "before")])
def test_a_step_killed_between_two_writes_is_run_again_to_the_same_end(
    disturbed: tuple[Path, int, dict[str, str]], share: float, when: str
) -> None:
    folder, writes, undisturbed = disturbed
    survive(folder, round(share * writes), when, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("part", range(4))
def test_a_step_killed_at_any_write_is_run_again_to_the_same_end(
    disturbed: tuple[Path, int, dict[str, str]], when: str, part: int
) -> None:
    folder, writes, undisturbed = disturbed
    for doomed in range(1 + part, writes + 1, 4):
        survive(folder, doomed, when, undisturbed)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a small disk needs root; the limit on file sizes is tested everywhere")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("room", [8, 72, 92])
def test_a_disk_that_is_full_while_a_version_is_written(tiny_disk: Path, tmp_path: Path, room: int) -> None:
    """With `room` KiB left a stage fails with the reason; with the disk freed the same run gives the same version."""
    source = write(tmp_path / "set", small())
    through(Platform.local(tmp_path / "large"), source, tmp_path)
    expected = DatasetVersion.read(tmp_path / "dataset").id
    ballast = tiny_disk / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_frsize
        file.write(bytes(free - room * 1024))
    platform = Platform.local(tiny_disk / "flywheel")
    with pytest.raises(SystemExit) as end:
        through(platform, source, tmp_path)
    assert end.value.code == 3
    store = open_store(platform.store)
    whole(store)
    ballast.unlink()
    through(platform, source, tmp_path)
    whole(store)
    assert DatasetVersion.read(tmp_path / "dataset").id == expected


LIMITED = """
import resource, sys
from pathlib import Path
from kfp_flywheel.components.runtime.config import Platform
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from kfp_flywheel.components.snapshot.stage import run
platform = Platform.local(Path(sys.argv[4])).line()
run(*sys.argv[1:4], "config", 0.15, 0.15, "(..).jpg", "nothing", platform, "2")
"""


def test_a_version_whose_file_cannot_grow_is_not_there_at_all(platform: Platform, world: World, tmp_path: Path) -> None:
    through(platform, write(tmp_path / "set", small()), tmp_path)
    made = set(world.store.list("manifests/snapshot/"))
    arguments = [str(tmp_path / name) for name in ("clean", "champion", "again", "flywheel")]
    limited = [sys.executable, "-c", LIMITED]
    done = subprocess.run([*limited, "2000", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "could not be written: File too large" in done.stdout.splitlines()[-1]
    assert not (tmp_path / "again").exists()
    assert set(world.store.list("manifests/snapshot/")) == made
    whole(world.store)
    subprocess.run([*limited, "200000", *arguments], capture_output=True, check=True)
    assert DatasetVersion.read(tmp_path / "again").id == DatasetVersion.read(tmp_path / "dataset").id
