"""Conditional and partial requests: RFC 9110 sections 13 and 14, for one byte range and strong ETags."""

from __future__ import annotations

import re
from dataclasses import dataclass

from api.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Span:
    """The bytes ``start..end`` of a file, both included."""

    start: int
    end: int

    def __len__(self) -> int:
        """Return how many bytes these are."""
        return self.end - self.start + 1


def wanted_span(header: str | None, size: int) -> Span | None:
    """Return the span that a ``Range`` header asks for, or None for the whole file.

    A server may ignore what it does not serve: several ranges, other units, a malformed header (RFC 9110, 14.2).

    >>> wanted_span("bytes=-3", 10)
    Span(start=7, end=9)

    Raises:
        RangeNotSatisfiable: No byte of the file is in the range.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    if start > end:
        raise RangeNotSatisfiable(
            f"The file has {size} bytes; none of them is in the range.",
            expected=f"a range within bytes 0-{size - 1}" if size else "no range: the file is empty",
            received=header,
            size=size,
        )
    return Span(start=start, end=end)


def lists_etag(header: str | None, etag: str) -> bool:
    """Return whether an ``If-None-Match`` header names this ETag (weak comparison, ``*`` names all).

    >>> lists_etag('W/"a", "b"', '"b"'), lists_etag("*", '"b"'), lists_etag('"c"', '"b"')
    (True, True, False)
    """
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in tags or "*" in tags


def range_applies(if_range: str | None, etag: str) -> bool:
    """Return whether the ``Range`` header counts: no ``If-Range``, or the very same strong ETag.

    A date never matches, since no ``Last-Modified`` is sent.
    """
    return if_range is None or if_range.strip() == etag
