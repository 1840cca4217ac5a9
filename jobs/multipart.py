"""Multipart uploads of the bucket, and URLs that let others send their parts and fetch objects past the api."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from jobs.bucket import Bucket
from jobs.s3 import connect, missing, s3_errors
from jobs.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: What S3 demands of every part but the last, and of every part.
MIN_PART_BYTES, MAX_PART_BYTES = 5 * 2**20, 5 * 2**30


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part that the store has."""

    number: int
    size: int
    etag: str


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    id: str
    began: datetime


class Multipart:
    """The multipart uploads of one bucket. Safe to share between threads."""

    def __init__(self, settings: Settings, bucket: Bucket) -> None:
        self._settings, self._bucket = settings, bucket

    @property
    def _client(self) -> S3Client:
        return self._bucket.client

    @cached_property
    def _signer(self) -> S3Client:
        """Signing needs no connection, but the host is signed: so it must be the one that the client will call."""
        public = self._settings.s3_public_endpoint
        return self._bucket.client if public is None else connect(self._settings, public)

    def begin(self, key: str) -> str:
        """Begin; return the id."""
        with s3_errors(key):
            begun = self._client.create_multipart_upload(
                Bucket=self._bucket.name, Key=key, ContentType="application/octet-stream"
            )
        return begun["UploadId"]

    def parts(self, key: str, id: str) -> list[Part] | None:
        """Return what the store has of it, or None if it was completed or aborted."""
        with s3_errors(key):
            try:
                pages = self._client.get_paginator("list_parts").paginate(
                    Bucket=self._bucket.name, Key=key, UploadId=id
                )
                found = [entry for page in pages for entry in page.get("Parts", ())]
            except ClientError as error:
                if missing(error):
                    return None
                raise
        return [Part(number=entry["PartNumber"], size=entry["Size"], etag=entry["ETag"]) for entry in found]

    def complete(self, key: str, id: str, parts: list[Part]) -> None:
        """Make one object of the parts; does nothing if that was done, or the upload aborted, meanwhile."""
        listed: Any = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        with s3_errors(key):
            try:
                self._client.complete_multipart_upload(
                    Bucket=self._bucket.name, Key=key, UploadId=id, MultipartUpload={"Parts": listed}
                )
            except ClientError as error:
                if not missing(error):
                    raise

    def abort(self, key: str, id: str) -> None:
        """Throw away the parts; does nothing if it was completed or aborted."""
        with s3_errors(key):
            try:
                self._client.abort_multipart_upload(Bucket=self._bucket.name, Key=key, UploadId=id)
            except ClientError as error:
                if not missing(error):
                    raise

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield every multipart upload that is under way, or was forgotten."""
        with s3_errors(self._bucket.name):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket.name):
                for entry in page.get("Uploads", ()):
                    yield Unfinished(key=entry["Key"], id=entry["UploadId"], began=entry["Initiated"])

    def part_url(self, key: str, id: str, number: int, size: int, *, seconds: int) -> str:
        """Return a URL to which anybody may PUT this part, of exactly this size, for so long."""
        return self._signed(
            "upload_part",
            # Signed: a server that checks what is signed takes no other size.
            {"Key": key, "UploadId": id, "PartNumber": number, "ContentLength": size},
            seconds,
        )

    def download_url(self, key: str, *, disposition: str, content_type: str, seconds: int, head: bool = False) -> str:
        """Return a URL from which anybody may GET (or HEAD) an object for so long.

        Args:
            key: The object.
            disposition: The ``Content-Disposition`` that the server is to answer with.
            content_type: Its ``Content-Type``.
            seconds: How long the URL works.
            head: For HEAD; a URL is good for one method.
        """
        wanted = {"Key": key, "ResponseContentDisposition": disposition, "ResponseContentType": content_type}
        return self._signed("head_object" if head else "get_object", wanted, seconds)

    def _signed(self, operation: str, wanted: dict[str, Any], seconds: int) -> str:
        with s3_errors(str(wanted["Key"])):
            return self._signer.generate_presigned_url(
                operation, Params={"Bucket": self._bucket.name, **wanted}, ExpiresIn=seconds
            )
