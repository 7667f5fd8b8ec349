"""`s3://`: S3, and what speaks its language; `AWS_ENDPOINT_URL` names another server.

Credentials are boto3's business: a workload's identity, or environment variables from a secret.
"""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError

from ..errors import PlatformError
from .objects import DIGEST, ObjectStore

T = TypeVar("T")
PART = 16 * 2**20
"""Bytes of a part of a multipart upload, of which S3 takes 10,000."""
CHUNK = 2**20
READS = 5
"""Attempts at a read that breaks off in the middle, which boto3 does not repeat."""
PATIENCE = Config(
    retries={"mode": "standard", "max_attempts": 12},  # waits up to 1, 2, 4 … 20 s: a store may be away for a minute
    connect_timeout=5,
    read_timeout=30,
    max_pool_connections=32,
)


class S3Store(ObjectStore):
    """Writes once by `If-None-Match: *`."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._client: Any = boto3.Session().client("s3", config=PATIENCE)

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            found = error.response["Error"]
            reason = f"{found.get('Code', '')} {found.get('Message', '')}".strip(" .")
            raise PlatformError(f"{what}: {reason}.", _remedy(str(found.get("Code")), self.bucket)) from error
        except (BotoCoreError, Boto3Error) as error:
            reason = str(error).rstrip(".")
            raise PlatformError(f"{what}: {reason}.", _remedy(type(error).__name__, self.bucket)) from error
        except OSError as error:
            raise PlatformError(f"{what}: {error.strerror or error}.") from error

    def create(self, name: str, source: bytes | Path, digest: str) -> bool:
        target = {"Bucket": self.bucket, "Key": name}
        about = {"ChecksumAlgorithm": "SHA256", "Metadata": {DIGEST: digest}}
        try:
            with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as body:
                first = body.read(PART)
                if len(first) < PART:
                    self._client.put_object(**target, **about, Body=first, IfNoneMatch="*")
                else:
                    self._multipart(target, about, first, body)
        except ClientError as error:
            # 409: another upload of this name ended just now.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                return False
            raise
        return True

    def _multipart(self, target: dict[str, str], about: dict[str, Any], content: bytes, body: IO[bytes]) -> None:
        upload = target | {"UploadId": self._client.create_multipart_upload(**target, **about)["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            while content:
                part = {"PartNumber": len(parts) + 1}
                sent = self._client.upload_part(**upload, **part, Body=content, ChecksumAlgorithm="SHA256")
                parts.append(part | {name: sent[name] for name in ("ETag", "ChecksumSHA256") if name in sent})
                content = body.read(PART)
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except BaseException:
            self._client.abort_multipart_upload(**upload)
            raise

    def read(self, name: str) -> tuple[bytes, str]:
        return self._get(name, lambda body: bytes(body.read()))

    def download(self, name: str, to: Path) -> str:
        def write(body: Any) -> None:
            with to.open("wb") as file:
                shutil.copyfileobj(body, file, CHUNK)

        return self._get(name, write)[1]

    def _get(self, name: str, consume: Callable[[Any], T], **how: str) -> tuple[T, str]:
        """Hand an object's stream on, from its beginning again if it breaks off."""
        for attempt in range(1, READS + 1):
            found = self._client.get_object(Bucket=self.bucket, Key=name, **how)
            try:
                return consume(found["Body"]), str(found["Metadata"].get(DIGEST, ""))
            except (HTTPClientError, IncompleteReadError, ResponseStreamingError):
                if attempt == READS:
                    raise
        raise AssertionError

    def digest(self, name: str) -> str | None:
        try:
            return str(self._client.head_object(Bucket=self.bucket, Key=name)["Metadata"].get(DIGEST, ""))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def objects(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for found in page.get("Contents", ()):
                yield found["Key"], found["Size"], found["ETag"]

    def extract(self, name: str, mark: str, start: int, stop: int) -> bytes | None:
        try:
            return self._get(name, lambda body: bytes(body.read()), IfMatch=mark, Range=f"bytes={start}-{stop - 1}")[0]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 412):
                return None
            raise


def _remedy(code: str, bucket: str) -> str:
    return {
        "NoSuchBucket": f"make the bucket {bucket}, or correct the name",
        "NoCredentialsError": "give the pod a service account with access, or set AWS_ACCESS_KEY_ID from a secret",
        "AccessDenied": f"allow this identity to read and write {bucket}",
        "403": f"allow this identity to read and write {bucket}",
        "EndpointConnectionError": "correct AWS_ENDPOINT_URL, or see whether the store is up",
    }.get(code, "")
