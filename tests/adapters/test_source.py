"""What every Source must do: what is read of it is what was listed. An adapter joins by a line in `root`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kfp_flywheel.components.runtime.errors import DataError
from kfp_flywheel.components.runtime.ports import Source
from kfp_flywheel.components.runtime.wiring import open_source

from tests import servers

Write = Callable[[str, bytes], None]


@pytest.fixture(params=["folder", "s3", "gs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Source, Write]]:
    """A source, and how others write into it."""
    if request.param == "folder":

        def write(key: str, content: bytes) -> None:
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(content)

        yield open_source(str(tmp_path)), write
    elif request.param == "s3":
        import boto3

        with servers.s3():
            there = boto3.resource("s3").Bucket(servers.BUCKET)
            yield (
                open_source(f"s3://{servers.BUCKET}/{tmp_path.name}"),
                lambda key, content: there.put_object(Key=f"{tmp_path.name}/{key}", Body=content),
            )
    else:
        if not servers.gcs_program().exists():
            pytest.skip("fake-gcs-server is not built; make cluster builds it")
        with servers.gcs(tmp_path):
            from google.cloud import storage

            bucket = storage.Client().bucket(servers.BUCKET)
            yield (
                open_source(f"gs://{servers.BUCKET}/set"),
                lambda key, content: bucket.blob(f"set/{key}").upload_from_string(content),
            )


def test_what_is_listed_is_sorted_and_read_by_parts(place: tuple[Source, Write]) -> None:
    source, write = place
    for key in ("b/x.jpg", "a.jpg", "b.jpg"):
        write(key, key.encode() * 100)
    listed = list(source.listed(""))
    assert [one.key for one in listed] == ["a.jpg", "b.jpg", "b/x.jpg"]
    assert [one.size for one in listed] == [500, 500, 700]
    assert [source.part(one, 0, one.size) for one in listed] == [one.key.encode() * 100 for one in listed]
    assert source.part(listed[0], 5, 12) == b"a.jpga."
    assert [one.key for one in source.listed("b.jpg")] == ["b.jpg"]


def test_what_changed_after_it_was_listed_is_not_read(place: tuple[Source, Write]) -> None:
    source, write = place
    write("a.jpg", b"before")
    (listed,) = source.listed("")
    write("a.jpg", b"beyond")
    with pytest.raises(DataError, match=r"a\.jpg changed after it was listed"):
        source.part(listed, 0, listed.size)
    (again,) = source.listed("")
    assert again.mark != listed.mark
