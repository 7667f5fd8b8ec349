"""label: what was asked for once is asked for once, and what was labelled is a source like any other."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.ingest import document
from kfp_flywheel.components.label.requests import missing, open_request, requests
from kfp_flywheel.components.runtime.artifacts import BadItem, CleanBatch, DatasetVersion, LabelRequest, Sample
from kfp_flywheel.components.runtime.blobs import get_blob
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import PlatformError
from kfp_flywheel.components.runtime.ports import Store
from kfp_flywheel.components.runtime.records import from_lines
from kfp_flywheel.components.runtime.wiring import World, open_store

from tests.folders import encode, jpeg, picture, small, through, write
from tests.releases import release
from tests.servers import BUCKET, s3

NAMES = ("cat", "dog")
PICTURES = [jpeg(100), jpeg(101), encode(picture(102), "PNG")]
LABEL = "0 0.5 0.5 0.25 0.25\n"


@pytest.fixture(params=["file", "s3"])
def landing(request: pytest.FixtureRequest, platform: Platform, tmp_path: Path) -> Iterator[Store]:
    if request.param == "file":
        yield open_store(platform.landing)
        return
    with s3():
        yield open_store(f"s3://{BUCKET}/landing")


def ask(world: World, landing: Store, pictures: list[bytes] = PICTURES, now: float = 1000.0) -> LabelRequest:
    return open_request(world.store, landing, "detector", release("1"), NAMES, pictures, "mAP50 fell.", now)


def answer(request: LabelRequest, name: str, text: str = LABEL) -> None:
    """As a labeller does it: with whatever writes files or objects."""
    label = f"labels/{name.rpartition('.')[0]}.txt"
    if request.folder.startswith("file://"):
        path = Path(request.folder.removeprefix("file://"), label)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    else:
        key = f"{request.folder.removeprefix(f's3://{BUCKET}/')}/{label}"
        boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=text.encode())


def contents(store: Store, prefix: str = "") -> dict[str, bytes]:
    return {key: store.get(f"{store.root}/{key}") for key in store.list(prefix)}


def test_a_request_has_the_images_the_classes_and_what_to_do(world: World, landing: Store) -> None:
    made = ask(world, landing, [*PICTURES, PICTURES[0]])
    there = contents(landing)
    images = {key.rpartition("/")[2]: there.pop(key) for key in sorted(there) if "/images/" in key}
    assert sorted(images) == sorted(made.images)
    assert sorted(images.values()) == sorted(PICTURES)
    assert sorted(name.rpartition(".")[2] for name in images) == ["jpg", "jpg", "png"]
    folder = f"detector/{made.id}"
    assert made.folder == f"{landing.root}/{folder}"
    assert sorted(there) == [f"{folder}/README.txt", f"{folder}/data.yaml"]
    told = there[f"{folder}/README.txt"].decode()
    assert "0 cat\n1 dog\n" in told
    assert requests(world.store, "detector") == [made]
    assert list(world.store.list("requests/")) == [f"requests/detector/0000001000000-{made.id}.json"]


def test_the_same_images_of_the_same_release_are_asked_for_once(world: World, landing: Store) -> None:
    made = ask(world, landing)
    before = contents(landing)
    again = open_request(world.store, landing, "detector", release("1"), NAMES, PICTURES[::-1], "Another reason.", 2e9)
    assert again == made
    assert contents(landing) == before
    other = open_request(world.store, landing, "detector", release("2"), NAMES, PICTURES, "mAP50 fell.", 3e9)
    assert other.id != made.id
    assert [request.id for request in requests(world.store, "detector")] == [made.id, other.id]


def test_requests_come_oldest_first_and_each_endpoint_has_its_own(world: World) -> None:
    landing = open_store(world.platform.landing)
    assert requests(world.store, "detector") == []
    times = [5.0, 1_700_000_000.25, 999.0]
    made = [ask(world, landing, [jpeg(seed)], now) for seed, now in enumerate(times)]
    open_request(world.store, landing, "detector-2", release("1"), NAMES, PICTURES, "", 1.0)
    assert requests(world.store, "detector") == sorted(made, key=lambda request: request.at)


def test_two_that_asked_at_once_asked_once(world: World) -> None:
    made = ask(world, open_store(world.platform.landing))
    world.store.put(f"requests/detector/0000001000007-{made.id}.json", made.but(at=1000.007).to_json())
    assert requests(world.store, "detector") == [made]


def test_labels_are_missing_until_each_image_has_its_file(world: World, landing: Store) -> None:
    made = ask(world, landing)
    first, second, third = made.images
    assert missing(landing, made) == [first, second, third]
    answer(made, second, "")
    answer(made, "stranger.jpg")
    answer(made, first, "half a li")  # validate finds out
    assert missing(landing, made) == [third]
    answer(made, third)
    assert missing(landing, made) == []


def test_a_request_of_another_landing_place_is_not_labelled_here(world: World, tmp_path: Path) -> None:
    made = ask(world, open_store(world.platform.landing))
    with pytest.raises(PlatformError, match="does not lie in the landing place"):
        missing(open_store(f"file://{tmp_path}/elsewhere"), made)


def test_a_request_without_images_is_a_mistake(world: World) -> None:
    with pytest.raises(ValueError, match="needs an image"):
        ask(world, open_store(world.platform.landing), [])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.text("abc:#- '\"\\%é字🦆0", min_size=1).filter(lambda name: name == name.strip()), unique=True, min_size=1
    )
)
def test_any_class_name_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("request")
    store = open_store(f"file://{folder}")
    made = open_request(store, store, "detector", release("1"), names, [b"x"], "", 1.0)
    assert document.read(document.find(made.folder)).names == tuple(names)


def test_what_was_labelled_makes_the_champions_data_grow(
    platform: Platform, world: World, landing: Store, tmp_path: Path
) -> None:
    """The very stages of the pipeline, over the request's folder."""
    through(platform, write(tmp_path / "set", small()), tmp_path)
    parent = DatasetVersion.read(tmp_path / "dataset")
    made = ask(world, landing, [jpeg(seed) for seed in range(11, 36)])  # the first of them is known
    for number, name in enumerate(made.images):
        answer(made, name, "" if number % 5 == 0 else LABEL)
    assert missing(landing, made) == []
    answer(made, made.images[1], "0 0.5 0.5")  # not finished: validate puts it aside
    assert through(platform, made.folder, tmp_path, champion=parent.id, test_fraction=0.3) == "new"

    grown = DatasetVersion.read(tmp_path / "dataset")
    clean = CleanBatch.read(tmp_path / "clean")
    bad = from_lines(get_blob(world.store, clean.quarantine), BadItem)
    assert [item.path for item in bad] == [f"images/{made.images[1]}"]
    samples = from_lines(get_blob(world.store, grown.index), Sample)
    assert (clean.count, len(samples)) == (24, 12 + 23)
    new = [sample for sample in samples if sample.path.count("/") == 1]
    assert {sample.path.removeprefix("images/") for sample in new} < set(made.images)
    assert {len(sample.boxes) for sample in new} == {0, 1}
    assert grown.holdouts[1:] == parent.holdouts


CHILD = """
import itertools, os, signal, sys
from pathlib import Path
from kfp_flywheel.components.label.requests import open_request
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.wiring import open_store
from tests.releases import release

platform, doomed, now = Platform.local(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
numbers, link = itertools.count(1), os.link  # several threads write

def deadly(source, target):
    if next(numbers) == doomed:
        os.kill(os.getpid(), signal.SIGKILL)
    link(source, target)

os.link = deadly  # the instant at which an object appears
stores = open_store(platform.store), open_store(platform.landing)
open_request(*stores, "detector", release("1"), ["cat"], [b"1", b"2", b"3"], f"at {now}", now)
"""


def test_a_request_that_was_killed_at_any_write_is_opened_once_when_run_again(tmp_path: Path) -> None:
    def child(root: Path, doomed: int, now: float) -> int:
        command = [sys.executable, "-c", CHILD, str(root), str(doomed), str(now)]
        return subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode

    for doomed in range(1, 7):  # three images, data.yaml, the text, the record
        platform = Platform.local(tmp_path / str(doomed))
        store, landing = open_store(platform.store), open_store(platform.landing)
        assert child(tmp_path / str(doomed), doomed, 1.0) == -9
        assert requests(store, "detector") == []
        assert child(tmp_path / str(doomed), 0, 2.0) == 0
        (made,) = requests(store, "detector")
        assert made.reason == "at 2.0"
        assert len(missing(landing, made)) == len(list(landing.list(f"detector/{made.id}/images/"))) == 3
        assert len(list(landing.list(""))) == 5
