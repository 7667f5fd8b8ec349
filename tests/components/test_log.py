"""The prediction log's format: what was written is read, merged and in order; what is torn is left out, and said."""

import hashlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.recipes.detection.features import FEATURES
from kfp_flywheel.components.recipes.detection.log import (
    SPAN_S,
    Entry,
    picture_of,
    pictures_of,
    read_window,
    write,
)
from kfp_flywheel.components.recipes.detection.predict import Detections
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.errors import Corrupt

START = 1_760_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(f"file://{tmp_path}/store")


def entry(at: float, boxes: int = 2) -> Entry:
    """A request whose every value follows from its time."""
    rng = np.random.default_rng(int(at * 1000))
    found = Detections(
        rng.uniform(0, 64, (boxes, 4)).astype(np.float32),
        np.sort(rng.uniform(0, 1, boxes))[::-1].astype(np.float32),
        rng.integers(0, 3, boxes),
        rng.uniform(0, 1, 5).astype(np.float32),
    )
    return Entry(
        at, rng.bytes(int(rng.integers(1, 50))), dict(zip(FEATURES, rng.uniform(0, 1, 22), strict=True)), found
    )


def batch(
    store: LocalStore, ats: list[float], version: str = "v1", server: str = "a", package: str = "p"
) -> list[Entry]:
    entries = [entry(at, boxes=int(at * 10) % 4) for at in ats]
    write(store, "detector", version, package, server, entries)
    return entries


def assert_shows(store: LocalStore, expected: list[Entry], last: int, **bounds: float) -> None:
    window, left_out = read_window(store, "detector", "v1", last, **bounds)
    assert left_out == []
    assert window.requests == len(expected)
    np.testing.assert_array_equal(window.at, [one.at for one in expected])
    for index, one in enumerate(expected):
        alone = window.part(index, index + 1)
        np.testing.assert_array_equal(alone.features[0], np.float32(list(one.features.values())))
        np.testing.assert_array_equal(alone.scores, one.found.scores)
        np.testing.assert_array_equal(alone.classes, one.found.classes)
        np.testing.assert_array_equal(alone.boxes, one.found.boxes)
        np.testing.assert_array_equal(alone.embeddings[0], one.found.embedding)
        assert picture_of(store, alone.pictures[0]) == one.content
    assert list(pictures_of(store, window.pictures)) == [one.content for one in expected]


offsets = st.lists(st.integers(0, 20_000), unique=True, max_size=30).map(sorted)


def spans(at: list[int]) -> Iterator[list[float]]:
    """As the writer divides a server's requests (ms after the start) into batches."""
    one: list[float] = []
    for ms in at:
        if one and (START + ms / 1000 - one[0] > SPAN_S or len(one) == 4):
            yield one
            one = []
        one.append(START + ms / 1000)
    if one:
        yield one


@settings(deadline=None, max_examples=60)
@given(
    servers=st.lists(offsets, min_size=1, max_size=3),
    last=st.integers(1, 40),
    bounds=st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)).map(sorted),
)
def test_the_newest_requests_of_all_servers_are_read_in_order(
    servers: list[list[int]], last: int, bounds: list[int]
) -> None:
    with TemporaryDirectory() as folder:
        store = LocalStore(f"file://{folder}")
        written = [
            one
            for number, at in enumerate(servers)
            for span in spans(at)
            for one in batch(store, [moment + number / 10_000 for moment in span], server=f"{number:x}")
        ]
        batch(store, [START], version="v10", server="f")
        since, before = (START + ms / 1000 + 0.00005 for ms in bounds)
        everything = sorted(written, key=lambda one: one.at)
        assert_shows(store, everything[-last:], last)
        within = [one for one in everything if since <= one.at < before]
        assert_shows(store, within[-last:], last, since=since, before=before)


class Counting(LocalStore):
    reads = 0

    def get(self, uri: str) -> bytes:
        self.reads += 1
        return super().get(uri)


def test_no_more_objects_are_read_than_may_matter(tmp_path: Path) -> None:
    store = Counting(f"file://{tmp_path}")
    for minute in range(30):
        batch(store, [START + 60 * minute + second for second in range(3)])
    assert read_window(store, "detector", "v1", 6)[0].requests == 6
    assert store.reads == 2
    store.reads = 0
    assert read_window(store, "detector", "v1", 100, before=START + 120.0, since=START + 60)[0].requests == 3
    assert store.reads <= 2


def test_nothing_logged_is_an_empty_window(store: LocalStore) -> None:
    window, left_out = read_window(store, "detector", "v1", 10)
    assert (window.requests, left_out, window.pictures) == (0, [], ())
    assert window.part(0, 5).class_counts(3).shape == (0, 3)
    assert window.feature_names.tolist() == list(FEATURES)


def test_older_requests_of_another_package_are_not_mixed_in(store: LocalStore) -> None:
    batch(store, [START], package="old")
    newer = batch(store, [START + 60], package="new")
    window, left_out = read_window(store, "detector", "v1", 10)
    assert window.at.tolist() == [newer[0].at]
    assert len(left_out) == 1
    assert "another package" in left_out[0]


@cache
def whole() -> bytes:
    with TemporaryDirectory() as folder:
        store = LocalStore(f"file://{folder}")
        batch(store, [START + 10, START + 10.1, START + 10.2])
        return store.get(f"{store.root}/{next(store.list('predictions/'))}")


KEY = f"predictions/detector/{int((START + 10) * 1000)}-v1-a.npz"


def with_damage(content: bytes) -> tuple[int, list[str]]:
    """Requests that are read, and what is said, when the newer one of two batches was replaced by this."""
    with TemporaryDirectory() as folder:
        store = LocalStore(f"file://{folder}")
        older = batch(store, [START, START + 0.5], server="b")
        store.put(KEY, content)
        window, left_out = read_window(store, "detector", "v1", 10)
        assert window.at[:2].tolist() == [one.at for one in older]
        if window.requests == 5:
            for index, at in enumerate((START + 10, START + 10.1, START + 10.2)):
                one = entry(at, boxes=int(at * 10) % 4)
                np.testing.assert_array_equal(window.part(index + 2, index + 3).scores, one.found.scores)
                np.testing.assert_array_equal(window.features[index + 2], np.float32(list(one.features.values())))
        return window.requests, left_out


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_batch_that_was_cut_off_is_left_out_and_named(data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(whole()) - 1))
    requests, left_out = with_damage(whole()[:kept])
    assert requests == 2
    assert len(left_out) == 1
    assert KEY in left_out[0]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_of_a_damaged_batch_everything_is_taken_or_nothing(data: st.DataObject) -> None:
    content = bytearray(whole())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    requests, left_out = with_damage(bytes(content))
    assert (requests, len(left_out)) in [(2, 1), (5, 0)]  # some bytes, dates for example, mean nothing


def test_an_array_whose_header_lies_is_not_taken_for_a_smaller_one() -> None:
    content = whole().replace(b"(3, 22)", b"(3, 12)")
    assert content != whole()
    requests, left_out = with_damage(content)
    assert requests == 2
    assert "features.npy is damaged" in left_out[0]


def test_pickled_objects_are_never_loaded(store: LocalStore) -> None:
    content = io.BytesIO()
    np.savez(content, at=np.array([print], dtype=object))
    assert with_damage(content.getvalue())[0] == 2


def test_a_damaged_picture_is_refused(store: LocalStore) -> None:
    batch(store, [START, START + 1])
    picture = read_window(store, "detector", "v1", 2)[0].pictures[1]
    path = Path(picture.uri.removeprefix("file://"))
    content = bytearray(path.read_bytes())
    assert hashlib.sha256(content[picture.offset :][: picture.size]).hexdigest() == picture.sha256
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(Corrupt, match="not what was logged"):
        picture_of(store, picture)
