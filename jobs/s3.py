"""What all that use the bucket share: the connection, the record of an object, the SDK's errors in our words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from jobs.errors import DigestMismatch, Unavailable
from jobs.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_making = threading.Lock()
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchBucket", "NoSuchUpload"}
#: What no waiting mends.
_NOT_LET_IN = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_KEYS = "The operator sets PRUNING_S3_ACCESS_KEY and PRUNING_S3_SECRET_KEY, the same for every part of the service."


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One object as it lies in the bucket."""

    key: str
    size: int
    etag: str
    sha256: str | None  # hex; None where it was not known before the bytes were sent (then the record has it)
    content_type: str


def connect(settings: Settings, endpoint: str | None) -> S3Client:
    """Return a client of the bucket's server, as it is reached at this endpoint. Safe to share between threads."""
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Servers other than AWS's refuse or ignore the newer trailing checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=64,
        connect_timeout=3,
        read_timeout=60,
        retries={"max_attempts": 3, "mode": "standard"},
    )
    # A session is not made for threads; the clients that come out of it are.
    with _making:
        client: S3Client = _session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=settings.s3_secret_key,
            config=config,
        )
    return client


@cache
def _session() -> boto3.session.Session:
    # It reads the descriptions of the SDK's services: ten times as long as all that makes a client of it.
    return boto3.session.Session()


@contextmanager
def s3_errors(key: str) -> Iterator[None]:
    """Turn the SDK's errors into `Unavailable`."""
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        advice = _KEYS if code in _NOT_LET_IN else "Try again in a moment."
        raise Unavailable(f"The bucket refused an operation on {key!r}: {code}.", advice=advice) from error
    except NoCredentialsError as error:
        raise Unavailable("There are no keys for the bucket.", advice=_KEYS) from error
    except BotoCoreError as error:
        raise Unavailable(
            f"The bucket does not answer ({type(error).__name__}).", advice="Try again in a moment."
        ) from error


def verify(expected: str | None, found: str) -> None:
    """Compare two SHA-256 digests.

    Raises:
        DigestMismatch: They differ.
    """
    if expected is not None and expected.lower() != found:
        raise DigestMismatch(
            "The bytes do not have the SHA-256 that was announced: they were changed or cut on the way.",
            expected=expected,
            received=found,
            advice="Send the file again.",
        )


def stored(key: str, size: int, found: Any) -> Stored:
    """Make the record from an answer of the server."""
    return Stored(
        key=key,
        size=size,
        etag=found["ETag"],
        sha256=found.get("Metadata", {}).get("sha256"),
        content_type=found.get("ContentType", "application/octet-stream"),
    )


def missing(error: ClientError) -> bool:
    """Return whether the error says that there is no such bucket, object or multipart upload."""
    return error_code(error) in _MISSING


def error_code(error: ClientError) -> str:
    """Return what the server calls the error."""
    return str(error.response.get("Error", {}).get("Code", ""))
