"""The bucket: S3 through boto3, synchronous (async callers use threads).

Bodies of any size stream in constant memory. Not every S3 server honours ``If-None-Match``, so `Bucket.write_once`
also checks first, and its callers in different processes hold a lock in Redis (`jobs.clock`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from urllib3.exceptions import HTTPError

from jobs.errors import NotFound, Unavailable
from jobs.s3 import Stored, connect, error_code, missing, s3_errors, stored, verify
from jobs.settings import Settings
from jobs.writer import BucketWriter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

#: Of a document that came torn.
_READS = 5
_READ_PAUSE_SECONDS = 0.02
CHUNK_BYTES = 2**18

_EXISTS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


class Bucket:
    """One S3 bucket. Safe to share between threads; not across a fork."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.s3_bucket
        self.client: S3Client = connect(settings, settings.s3_endpoint)
        # Striped: write-once on one key is atomic within the process, different keys rarely wait for each other.
        self._writing = tuple(threading.Lock() for _ in range(64))

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def ensure(self) -> None:
        """Make the bucket if it is not there.

        Raises:
            Unavailable: The server does not answer, or refuses the keys.
        """
        with s3_errors(self.name):
            try:
                self.client.head_bucket(Bucket=self.name)
            except ClientError as error:
                if not missing(error):
                    raise
                self.client.create_bucket(Bucket=self.name)

    def check(self) -> None:
        """Ask whether the bucket answers.

        Raises:
            Unavailable: It does not.
        """
        with s3_errors(self.name):
            try:
                self.client.head_bucket(Bucket=self.name)
            except ClientError as error:
                raise Unavailable(f"The bucket {self.name!r} cannot be used: {error_code(error)}.") from error

    # -- documents -------------------------------------------------------------------------------------------------

    def put_json(self, key: str, document: dict[str, Any]) -> None:
        """Write a JSON document, over what is there."""
        with s3_errors(key):
            self.client.put_object(
                Bucket=self.name, Key=key, Body=_encode(document), ContentType="application/json; charset=utf-8"
            )

    def get_json(self, key: str) -> dict[str, Any] | None:
        """Return the document, or None if there is none that is whole.

        Whoever wrote what is not whole was told that it had failed (nanio does that when its disk is full).

        Raises:
            Unavailable: The server does not answer, or not to the end.
        """
        for again in reversed(range(_READS)):
            with s3_errors(key):
                try:
                    with self.client.get_object(Bucket=self.name, Key=key)["Body"] as body:
                        document: dict[str, Any] = json.loads(body.read())
                except ClientError as error:
                    if missing(error):
                        return None
                    raise
                # While a document is being replaced, nanio announces the length of one and sends the other.
                except HTTPError as error:
                    if not again:
                        raise Unavailable("The bucket breaks off.", advice="Try again in a moment.") from error
                except ValueError:
                    if not again:
                        logger.exception("a broken document is taken for none key=%s", key)
                        return None
                else:
                    return document
            time.sleep(_READ_PAUSE_SECONDS)
        raise AssertionError

    def write_once(self, key: str, document: dict[str, Any]) -> bool:
        """Write the document unless the key exists.

        Atomic within this process, and everywhere if the server honours ``If-None-Match``; other processes on a
        server that does not must hold a common lock.

        Returns:
            Whether this very document is what the key now holds because of this call.
        """
        body = _encode(document)
        with self._writing[hash(key) % len(self._writing)], s3_errors(key):
            if self.head(key) is not None:
                if self.get_json(key) is not None:
                    return False
                self.put_json(key, document)  # what is there is not whole
                return True
            try:
                self.client.put_object(
                    Bucket=self.name, Key=key, Body=body, ContentType="application/json; charset=utf-8", IfNoneMatch="*"
                )
            except ClientError as error:
                if error_code(error) == "NotImplemented":
                    self.put_json(key, document)
                    return True
                if error_code(error) not in _EXISTS:
                    raise
                # A retry of the SDK may have met its own first try, whole or not.
                found = self.get_json(key)
                if found is None:
                    self.put_json(key, document)
                return found is None or bool(found == json.loads(body))
            return True

    # -- streams ---------------------------------------------------------------------------------------------------

    def writer(
        self, key: str, *, sha256: str | None = None, content_type: str = "application/octet-stream"
    ) -> BucketWriter:
        """Return a writer for a body of unknown length.

        Args:
            key: Where it goes; nothing is visible there before `BucketWriter.finish`.
            sha256: The digest that the bytes must have (hex), if it is known already.
            content_type: Stored with the object.
        """
        return BucketWriter(self.client, self.name, key, sha256, content_type)

    def upload(
        self,
        key: str,
        stream: Iterable[bytes],
        expected_sha256: str | None = None,
        *,
        content_type: str = "application/octet-stream",
    ) -> Stored:
        """Store a stream of unknown length in constant memory; on any failure nothing is left.

        Raises:
            DigestMismatch: The bytes do not have the expected SHA-256.
            Unavailable: The server does not answer.
        """
        writer = self.writer(key, sha256=expected_sha256, content_type=content_type)
        try:
            for chunk in stream:
                writer.write(chunk)
            return writer.finish()
        except BaseException:
            writer.abort()
            raise

    def upload_file(self, key: str, path: Path, *, content_type: str = "application/octet-stream") -> Stored:
        """Store a file; its SHA-256 is computed first, and stored with it.

        Raises:
            OSError: It cannot be read, or is a link: whoever wrote it could make us publish another's file.
            ValueError: It is no plain file, for the same reason.
        """
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
                raise ValueError(f"not a plain file: {path.name!r}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            return self.upload(key, chunks, digest, content_type=content_type)

    def head(self, key: str) -> Stored | None:
        """Return what lies at the key, or None."""
        with s3_errors(key):
            try:
                found = self.client.head_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if missing(error):
                    return None
                raise
        return stored(key, found["ContentLength"], found)

    def open(self, key: str, start: int | None = None, end: int | None = None) -> tuple[Stored, Iterator[bytes]]:
        """Open an object, or the bytes ``start..end`` of it: both included, as in HTTP, and both within the object.

        Returns:
            The whole object's record, and an iterator over the wanted bytes; closing it closes the connection.

        Raises:
            NotFound: There is no such object.
        """
        span: dict[str, Any] = {}
        if start is not None or end is not None:
            span["Range"] = f"bytes={start or 0}-{'' if end is None else end}"
        with s3_errors(key):
            try:
                found = self.client.get_object(Bucket=self.name, Key=key, **span)
            except ClientError as error:
                if missing(error):
                    raise NotFound("This file is not in the bucket (any more).") from error
                raise
        # "bytes 0-9/1234": the whole size is behind the slash.
        size = int(found["ContentRange"].rpartition("/")[2]) if "ContentRange" in found else found["ContentLength"]

        def chunks() -> Iterator[bytes]:
            # Not `with body`: that gives the raw connection, which neither checks the length nor has iter_chunks.
            with s3_errors(key), closing(found["Body"]) as body:
                yield from body.iter_chunks(CHUNK_BYTES)

        return stored(key, size, found), chunks()

    def download_to(self, key: str, path: Path, sha256: str | None = None) -> Stored:
        """Copy an object to a file and verify it.

        Args:
            key: The object.
            path: The file to write; removed again if anything fails.
            sha256: What the digest must be (hex); default: the one stored with the object, if any.

        Raises:
            NotFound: There is no such object.
            DigestMismatch: The bytes are not those that were stored.
        """
        found, chunks = self.open(key)
        digest, expected = hashlib.sha256(), sha256 or found.sha256
        try:
            with path.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            verify(expected, digest.hexdigest())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return found

    # -- listing and deletion --------------------------------------------------------------------------------------

    def list(self, prefix: str, after: str | None = None, limit: int | None = None) -> Iterator[str]:
        """Yield the keys under a prefix, in order, after the key ``after``, at most ``limit``."""
        yield from self._pages("Contents", "Key", prefix, after, limit)

    def children(self, prefix: str) -> Iterator[str]:
        """Yield the names right under a prefix that have something under them (``jobs/`` -> job ids), once each."""
        seen: set[str] = set()
        for key in self._pages("CommonPrefixes", "Prefix", prefix, None, None, Delimiter="/"):
            name = key[len(prefix) : -1]
            # nanio repeats all common prefixes on every page.
            if name not in seen:
                seen.add(name)
                yield name

    def delete(self, key: str) -> None:
        """Delete one object; deleting what is not there changes nothing."""
        with s3_errors(key):
            self.client.delete_object(Bucket=self.name, Key=key)

    def delete_prefix(self, prefix: str) -> int:
        """Delete everything under a prefix (which must end with a slash) and return how many objects that were."""
        if not prefix.endswith("/"):
            raise ValueError(f"a prefix to delete must end with '/': {prefix!r}")
        keys = list(self.list(prefix))
        for key in keys:
            self.delete(key)
        return len(keys)

    def _pages(
        self, field: str, name: str, prefix: str, after: str | None, limit: int | None, **options: Any
    ) -> Iterator[str]:
        more: dict[str, Any] = {"StartAfter": after} if after is not None else {}
        left = limit
        while left is None or left > 0:
            with s3_errors(prefix):
                page: Any = self.client.list_objects_v2(
                    Bucket=self.name, Prefix=prefix, MaxKeys=min(left or 1000, 1000), **options, **more
                )
            for entry in page.get(field, ()):
                yield entry[name]
                left = left - 1 if left is not None else None
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
