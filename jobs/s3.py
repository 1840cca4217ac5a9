"""What reading and writing the bucket share: the record of an object, and the SDK's errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from jobs.errors import DigestMismatch, Unavailable


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One object as it lies in the bucket."""

    key: str
    size: int
    etag: str
    sha256: str | None  # hex; None where it was not known before the bytes were sent (then the record has it)
    content_type: str


@contextmanager
def s3_errors(key: str) -> Iterator[None]:
    """Turn the SDK's errors into `Unavailable`."""
    try:
        yield
    except ClientError as error:
        raise Unavailable(
            f"The bucket refused an operation on {key!r}: {error_code(error)}.", advice="Try again in a moment."
        ) from error
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


def error_code(error: ClientError) -> str:
    """Return what the server calls the error."""
    return str(error.response.get("Error", {}).get("Code", ""))
