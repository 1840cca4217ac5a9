"""Writing a body of unknown length into the bucket, in constant memory."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from jobs.s3 import Stored, s3_errors, verify

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

#: S3 wants parts of at least 5 MiB and at most 10,000 of them; equal sizes suit every server. Up to 80 GB.
PART_BYTES = 8 * 2**20


class Comparison:
    """Takes bytes that are stored already: it only looks whether they are the same."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._began = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    @property
    def sha256(self) -> str:
        """Of the bytes so far (hex)."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Take more bytes."""
        self._digest.update(chunk)
        self.size += len(chunk)

    def abort(self) -> None:
        """Nothing was sent."""


class BucketWriter:
    """A body on its way into the bucket: small ones become one put, larger ones a multipart upload."""

    def __init__(self, client: S3Client, bucket: str, key: str, sha256: str | None, content_type: str) -> None:
        self.size = 0
        self._client, self._key, self._expected = client, key, sha256.lower() if sha256 else None
        self._digest = hashlib.sha256()
        self._buffer = bytearray()
        self._upload: str | None = None
        self._parts: list[CompletedPartTypeDef] = []
        self._where: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self._about: dict[str, Any] = {
            "ContentType": content_type,
            "Metadata": {"sha256": self._expected} if self._expected else {},
        }

    @property
    def sha256(self) -> str:
        """Of the bytes so far (hex)."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Take more bytes; blocks while a full part is sent."""
        self._digest.update(chunk)
        self.size += len(chunk)
        view = memoryview(chunk)
        while view:
            room = PART_BYTES - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) == PART_BYTES:
                self._send_part()

    def finish(self) -> Stored:
        """Make the object visible.

        Raises:
            DigestMismatch: The bytes do not have the expected SHA-256; nothing was stored.
            Unavailable: The server does not answer.
        """
        sha256 = self._digest.hexdigest()
        verify(self._expected, sha256)
        client, where = self._client, self._where
        with s3_errors(self._key):
            if self._upload is None:
                self._about["Metadata"] = {"sha256": sha256}
                etag = client.put_object(**where, Body=bytes(self._buffer), **self._about)["ETag"]
            else:
                if self._buffer:
                    self._send_part()
                done = client.complete_multipart_upload(
                    **where, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
                )
                etag, self._upload = done["ETag"], None
        self._buffer.clear()
        return Stored(key=self._key, size=self.size, etag=etag, sha256=sha256, content_type=self._about["ContentType"])

    def abort(self) -> None:
        """Throw away what was sent; does nothing after `finish`. Never raises: it runs while another error does."""
        self._buffer.clear()
        if self._upload is None:
            return
        try:
            self._client.abort_multipart_upload(**self._where, UploadId=self._upload)
        except (ClientError, BotoCoreError):
            return
        self._upload = None

    def _send_part(self) -> None:
        client, where = self._client, self._where
        with s3_errors(self._key):
            if self._upload is None:
                self._upload = client.create_multipart_upload(**where, **self._about)["UploadId"]
            number = len(self._parts) + 1
            sent = client.upload_part(**where, UploadId=self._upload, PartNumber=number, Body=bytes(self._buffer))
        self._parts.append({"ETag": sent["ETag"], "PartNumber": number})
        self._buffer.clear()
