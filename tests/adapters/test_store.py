"""What every Store must do, whatever it is made of. An adapter joins by a line in `store`."""

import hashlib
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.artifacts import Blob
from kfp_flywheel.components.runtime.blobs import fetch_blob, find_blob, get_blob, put_blob
from kfp_flywheel.components.runtime.errors import AlreadyExists, Corrupt, PlatformError
from kfp_flywheel.components.runtime.ports import Store
from kfp_flywheel.components.runtime.wiring import open_store

from tests import servers


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with servers.s3() as server:
        yield server.url


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not servers.gcs_program().exists():
        pytest.skip("fake-gcs-server is not built; make cluster builds it")
    with servers.gcs(tmp_path_factory.mktemp("gcs")) as url:
        yield url


@pytest.fixture(params=["file", "s3", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The root of a store that is empty."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    request.getfixturevalue({"s3": "s3", "gs": "gcs"}[request.param])
    return f"{request.param}://{servers.BUCKET}/{uuid.uuid4().hex}/store"


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


def test_an_object_is_read_as_it_was_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    (tmp_path / "parts").write_bytes(b"\2\3" * 10_000_000)  # S3 takes it in parts, Google resumably
    for key, source, content in (
        ("a/b/c.json", b"bytes", b"bytes"),
        ("empty", b"", b""),
        ("large", b"\0\1" * 1_500_000, b"\0\1" * 1_500_000),
        ("from/file", tmp_path / "file", b"from a file"),
        ("in/parts", tmp_path / "parts", b"\2\3" * 10_000_000),
        ("a name/with ü #?%20&.jpg", b"odd", b"odd"),
    ):
        assert not store.exists(key)
        uri = store.put(key, source)
        assert uri == f"{store.root}/{key}"
        assert store.get(uri) == content
        assert store.exists(key)
        store.fetch(uri, tmp_path / "fetched" / "here")
        assert (tmp_path / "fetched" / "here").read_bytes() == content
    assert (tmp_path / "file").read_bytes() == b"from a file"


def test_the_same_content_again_is_no_error_and_other_content_is(store: Store) -> None:
    uri = store.put("key", b"one")
    assert store.put("key", b"one") == uri
    with pytest.raises(AlreadyExists, match="written once"):
        store.put("key", b"two")
    assert store.get(uri) == b"one"


def test_what_is_not_there_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="no/such"):
        store.get(f"{store.root}/no/such")
    with pytest.raises(PlatformError, match="no/such"):
        store.fetch(f"{store.root}/no/such", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    assert not store.exists("no/such")
    assert list(store.list("no/")) == []
    assert list(store.list("")) == []


def test_a_prefix_of_a_key_is_not_an_object(store: Store) -> None:
    store.put("folder/key", b"1")
    assert not store.exists("folder")
    with pytest.raises(PlatformError):
        store.get(f"{store.root}/folder")


@pytest.mark.parametrize("key", ["", "/absolute", "../outside", "a/../../outside"])
def test_nothing_is_written_outside_the_store(store: Store, key: str, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="is not a key"):
        store.put(key, b"1")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_uris_of_another_store_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "storeroom").write_text("private")
    for uri in (f"{store.root}room", f"{store.root}/../storeroom", f"file://{tmp_path}/storeroom"):
        with pytest.raises(PlatformError):
            store.get(uri)


def test_keys_are_listed_by_prefix_and_sorted(store: Store, tmp_path: Path) -> None:
    (tmp_path / "beside").write_text("not in the store")
    for key in ("runs/a/2", "runs/a/10", "runs/ab/1", "runs/b/1/deep", "run", "other/x"):
        store.put(key, key.encode())
    assert list(store.list("runs/a/")) == ["runs/a/10", "runs/a/2"]
    assert list(store.list("runs/a")) == ["runs/a/10", "runs/a/2", "runs/ab/1"]
    assert list(store.list("run")) == ["run", "runs/a/10", "runs/a/2", "runs/ab/1", "runs/b/1/deep"]
    assert list(store.list("")) == ["other/x", *store.list("run")]


def test_fetched_files_replace_what_was_there(store: Store, tmp_path: Path) -> None:
    (tmp_path / "to").write_text("old")
    for key in ("one", "two", "two"):
        store.fetch(store.put(key, key.encode()), tmp_path / "to")
        assert (tmp_path / "to").read_text() == key


def test_of_many_writers_one_wins_and_all_agree(store: Store) -> None:
    def write(number: int) -> bool:
        try:
            store.put("contested", str(number % 4).encode() * 100_000)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(32)))
    content = store.get(f"{store.root}/contested")
    assert len(content) == 100_000
    winner = int(content[:1])
    assert won == [number % 4 == winner for number in range(32)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000))
def test_blobs_are_what_they_hash_to(store: Store, tmp_path: Path, content: bytes) -> None:
    blob = put_blob(store, content, ".bin")
    assert (blob.sha256, blob.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert put_blob(store, content, ".bin") == blob == find_blob(store, blob.sha256, blob.size, ".bin")
    assert get_blob(store, blob) == content
    (tmp_path / "blob").write_bytes(content)
    assert put_blob(store, tmp_path / "blob", ".bin") == blob
    assert fetch_blob(store, blob, tmp_path / "copy").read_bytes() == content


def test_other_bytes_under_a_blobs_name_are_never_handed_out(store: Store, tmp_path: Path) -> None:
    liar = Blob(uri=store.put("blobs/ab/cd", b"other"), sha256="0" * 64, size=5)
    with pytest.raises(Corrupt):
        get_blob(store, liar)
    with pytest.raises(Corrupt):
        fetch_blob(store, liar, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


WRITER = """
import sys
from kfp_flywheel.components.runtime.wiring import open_store

from tests import servers
store = open_store(sys.argv[1])
print("ready", flush=True)
for number in range(1_000_000):
    store.put(f"objects/{number}", str(number % 10).encode() * 200_000)
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_objects_or_none(root: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, root], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        for line in writer.stdout:
            if line.strip() == b"20":
                break
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    store = open_store(root)
    keys = list(store.list(""))
    assert len(keys) >= 21
    for key in keys:
        assert key.startswith("objects/")
        content = store.get(f"{store.root}/{key}")
        assert content == key[-1].encode() * 200_000
    assert store.put("objects/next", b"goes on") == f"{store.root}/objects/next"


def test_a_local_object_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    store = LocalStore(f"file://{tmp_path}/store")
    path = Path(store.put("key", b"1").removeprefix("file://"))
    assert path.stat().st_mode & 0o222 == 0
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]
    store.fetch(f"{store.root}/key", tmp_path / "fetched")
    assert (tmp_path / "fetched").stat().st_mode & 0o222 == 0
