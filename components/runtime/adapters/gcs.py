"""`gs://`: Google Cloud Storage. Credentials are the library's business: a workload's identity, or a mounted secret."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from ..errors import PlatformError
from .objects import DIGEST, ObjectStore

PATIENCE = DEFAULT_RETRY.with_timeout(90.0)


class GcsStore(ObjectStore):
    """Writes once by `if_generation_match=0`; large files by resumable uploads; CRC32C both ways."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        with self.explained(f"{root} cannot be opened"):
            self._bucket: Any = storage.Client().bucket(self.bucket)

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except GoogleAuthError as error:
            remedy = "give the pod a service account with access, or set GOOGLE_APPLICATION_CREDENTIALS from a secret"
            raise PlatformError(f"{what}: {error}", remedy) from error
        except NotFound as error:
            raise PlatformError(f"{what}: there is no such object or bucket.") from error
        except (GoogleAPIError, requests.RequestException) as error:
            raise PlatformError(f"{what}: {getattr(error, 'message', '') or error}") from error
        except OSError as error:
            raise PlatformError(f"{what}: {error.strerror or error}.") from error

    def create(self, name: str, source: bytes | Path, digest: str) -> bool:
        blob = self._bucket.blob(name)
        blob.metadata = {DIGEST: digest}
        how = {"if_generation_match": 0, "checksum": "crc32c", "retry": PATIENCE}
        try:
            if isinstance(source, Path):
                blob.upload_from_filename(str(source), **how)
            else:
                blob.upload_from_string(source, **how)
        except PreconditionFailed:
            return False
        return True

    def read(self, name: str) -> tuple[bytes, str]:
        blob = self._bucket.blob(name)
        content: bytes = blob.download_as_bytes(checksum="crc32c", retry=PATIENCE)
        return content, self.digest(name) or ""

    def download(self, name: str, to: Path) -> str:
        self._bucket.blob(name).download_to_filename(str(to), checksum="crc32c", retry=PATIENCE)
        return self.digest(name) or ""

    def digest(self, name: str) -> str | None:
        blob = self._bucket.get_blob(name, retry=PATIENCE)
        return None if blob is None else str((blob.metadata or {}).get(DIGEST, ""))

    def objects(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        for blob in self._bucket.list_blobs(prefix=prefix, retry=PATIENCE):
            yield blob.name, blob.size, str(blob.generation)

    def extract(self, name: str, mark: str, start: int, stop: int) -> bytes | None:
        blob = self._bucket.blob(name, generation=int(mark))
        try:
            return bytes(blob.download_as_bytes(start=start, end=stop - 1, retry=PATIENCE))
        except NotFound:
            return None
