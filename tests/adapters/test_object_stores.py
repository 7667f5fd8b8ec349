"""What only a store behind a network can suffer."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from kfp_flywheel.components.runtime.adapters import s3 as adapter
from kfp_flywheel.components.runtime.errors import AlreadyExists, Corrupt, PlatformError
from kfp_flywheel.components.runtime.ports import Store
from kfp_flywheel.components.runtime.wiring import open_store

from tests import faulty, servers

LARGE = os.urandom(1000) * 40_000  # 40 MB: three parts


@pytest.fixture(scope="module")
def disturbed() -> Iterator[faulty.Faulty]:
    """S3 behind something that fails as it is told to."""
    with servers.s3() as server, faulty.in_front_of(server.url) as front, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", front.url)
        yield front


@pytest.fixture
def store(disturbed: faulty.Faulty, tmp_path: Path) -> Store:
    disturbed.plan = []
    return open_store(f"s3://{servers.BUCKET}/{tmp_path.name}")


def server() -> Any:
    return boto3.client("s3")


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_store_that_refuses_for_a_while_is_waited_for(disturbed: faulty.Faulty, store: Store, method: str) -> None:
    disturbed.plan = [(method, "503")] * 3
    assert store.get(store.put("key", b"content")) == b"content"
    assert disturbed.plan == []


def test_an_answer_that_breaks_off_is_read_again(disturbed: faulty.Faulty, store: Store, tmp_path: Path) -> None:
    uri = store.put("key", LARGE)
    disturbed.plan = [("GET", "truncated")] * 2
    assert store.get(uri) == LARGE
    disturbed.plan = [("GET", "truncated")] * 2
    store.fetch(uri, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == LARGE
    assert disturbed.plan == []


@pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "large"])
def test_a_write_whose_answer_is_lost_is_no_conflict_with_itself(
    disturbed: faulty.Faulty, store: Store, content: bytes
) -> None:
    disturbed.plan = [("PUT", "lost")]
    assert store.get(store.put("key", content)) == content
    assert disturbed.plan == []


def test_large_objects_are_written_once_too_and_leave_no_parts(store: Store, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    uri = store.put("key", tmp_path / "large")
    assert store.put("key", LARGE) == uri
    with pytest.raises(AlreadyExists, match="written once"):
        store.put("key", LARGE[:-1])
    assert "Uploads" not in server().list_multipart_uploads(Bucket=servers.BUCKET)


def test_bytes_that_were_changed_in_the_store_are_never_handed_out(store: Store, tmp_path: Path) -> None:
    uri = store.put("key", b"content")
    name = uri.removeprefix(f"s3://{servers.BUCKET}/")
    digest = server().head_object(Bucket=servers.BUCKET, Key=name)["Metadata"]
    server().put_object(Bucket=servers.BUCKET, Key=name, Body=b"cuntent", Metadata=digest)
    with pytest.raises(Corrupt, match="SHA-256"):
        store.get(uri)
    with pytest.raises(Corrupt, match="SHA-256"):
        store.fetch(uri, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_objects_that_somebody_else_copied_here_are_compared_by_content(store: Store) -> None:
    name = store.root.removeprefix(f"s3://{servers.BUCKET}/") + "/key"
    server().put_object(Bucket=servers.BUCKET, Key=name, Body=b"content")
    assert store.get(store.put("key", b"content")) == b"content"
    with pytest.raises(AlreadyExists):
        store.put("key", b"other")


def test_errors_name_the_store_and_the_next_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlatformError, match=r"NoSuchBucket.*make the bucket nowhere-at-all"):
        open_store("s3://nowhere-at-all/x").put("key", b"")
    monkeypatch.setattr(adapter, "PATIENCE", adapter.PATIENCE.merge(adapter.Config(retries={"max_attempts": 1})))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(PlatformError, match=r"could not be written: .*AWS_ENDPOINT_URL"):
        open_store(store.root).put("key", b"")


def test_without_credentials_the_message_says_what_to_give(
    disturbed: faulty.Faulty, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PlatformError, match="AWS_ACCESS_KEY_ID from a secret"):
        open_store(f"s3://{servers.BUCKET}/x").put("key", b"")
