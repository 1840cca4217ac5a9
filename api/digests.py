"""SHA-256 in headers (RFC 9530 ``Content-Digest``, RFC 8941 byte sequences) and in the query."""

from __future__ import annotations

import base64
import binascii
import re

from api.errors import InvalidRequest, MalformedRequest

_MEMBER = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)\s*=\s*:([A-Za-z0-9+/=]*):\s*")
_HEX = re.compile(r"[0-9a-fA-F]{64}")


def as_header(sha256: str) -> str:
    """Return the ``Content-Digest`` value of a hexadecimal SHA-256.

    >>> as_header("00" * 32)
    'sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:'
    """
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def from_header(value: str | None) -> str | None:
    """Return the hexadecimal SHA-256 of a ``Content-Digest`` header; None if it names only other algorithms.

    Raises:
        MalformedRequest: The header is not a dictionary of byte sequences, or the digest has not 32 bytes.
    """
    if value is None:
        return None
    found = None
    for part in value.split(","):
        member = _MEMBER.fullmatch(part)
        if member is None:
            raise _malformed(value)
        if member[1] != "sha-256":
            continue
        try:
            digest = base64.b64decode(member[2], validate=True)
        except binascii.Error:
            raise _malformed(value) from None
        if len(digest) != 32:
            raise _malformed(value)
        found = digest.hex()
    return found


def from_query(value: str | None) -> str | None:
    """Return the hexadecimal SHA-256 of ``?sha256=``, in lower case.

    Raises:
        InvalidRequest: It is not 64 hexadecimal digits.
    """
    if value is None:
        return None
    if _HEX.fullmatch(value) is None:
        raise InvalidRequest(
            "The query parameter sha256 is not a SHA-256.",
            expected="64 hexadecimal digits, as sha256sum prints them",
            received=value[:100],
        )
    return value.lower()


def _malformed(value: str) -> MalformedRequest:
    return MalformedRequest(
        "The header Content-Digest cannot be read.",
        expected="sha-256=:<base64 of 32 bytes>: (RFC 9530)",
        received=value[:200],
        advice='Or send ?sha256=$(sha256sum FILE | cut -d" " -f1).',
    )
