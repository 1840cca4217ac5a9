"""Ranges, ETags, digests, file names: pure functions."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import digests
from api.errors import InvalidRequest, MalformedRequest, RangeNotSatisfiable
from api.filenames import clean, derived, disposition
from api.ranges import Span, lists_etag, range_applies, wanted_span


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-9", Span(start=0, end=9)),
        ("bytes=90-", Span(start=90, end=99)),
        ("bytes=90-1000", Span(start=90, end=99)),
        ("bytes=-1", Span(start=99, end=99)),
        ("bytes=-1000", Span(start=0, end=99)),
        ("Bytes = 1-2", Span(start=1, end=2)),
        ("bytes=9-1", None),  # malformed: ignored
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-1,5-6", None),  # several ranges are not served
        ("items=0-1", None),
    ],
)
def test_a_range_header_asks_for_these_bytes(header: str | None, expected: Span | None) -> None:
    assert wanted_span(header, 100) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=100-", 100), ("bytes=100-200", 100), ("bytes=-0", 100), ("bytes=0-", 0)]
)
def test_a_range_without_a_byte_of_the_file_is_refused(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        wanted_span(header, size)
    assert caught.value.problem()["size"] == size


@given(st.integers(1, 200), st.integers(0, 300), st.integers(0, 300))
def test_a_served_span_is_what_a_slice_gives(size: int, first: int, last: int) -> None:
    data = bytes(index % 256 for index in range(size))
    try:
        span = wanted_span(f"bytes={first}-{last}", size)
    except RangeNotSatisfiable:
        assert data[first : last + 1] == b""
        return
    if span is None:
        assert last < first
    else:
        assert data[span.start : span.end + 1] == data[first : last + 1]
        assert len(span) == len(data[first : last + 1])


def test_etags_compare_weakly_for_none_match_and_strongly_for_if_range() -> None:
    assert lists_etag('"x", W/"a"', '"a"')
    assert not lists_etag(None, '"a"')
    assert range_applies(None, '"a"')
    assert range_applies('"a"', '"a"')
    assert not range_applies('W/"a"', '"a"')
    assert not range_applies("Sat, 21 Nov 2026 10:00:00 GMT", '"a"')


def test_a_digest_survives_the_way_into_a_header_and_back() -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    assert digests.from_header(digests.as_header(sha256)) == sha256
    assert digests.from_header(f"sha-512=:AAAA:, {digests.as_header(sha256)}") == sha256
    assert digests.from_header("sha-512=:AAAA:") is None
    assert digests.from_header(None) is None
    assert digests.from_query(sha256.upper()) == sha256


@pytest.mark.parametrize("header", ["", "sha-256=abc", "sha-256=:AAAA:", "sha-256=:!!!:", "sha-256=:A:", "; drop"])
def test_a_digest_that_cannot_be_read_is_refused(header: str) -> None:
    with pytest.raises(MalformedRequest):
        digests.from_header(header)


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63])
def test_a_query_digest_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        digests.from_query(text)


@given(st.text(max_size=600))
def test_a_cleaned_name_is_one_harmless_path_part(name: str) -> None:
    cleaned = clean(name)
    if cleaned is not None:
        assert cleaned not in {"", ".", ".."}
        assert not set(cleaned) & set("/\\\r\n\x00")
        assert len(cleaned) <= 200
        header = disposition(derived(cleaned, "-pruned"))
        header.encode("ascii")
        assert "\r" not in header
        assert "\n" not in header


def test_a_download_is_named_after_its_upload() -> None:
    assert derived("net.pt2", "-pruned") == "net-pruned.pt2"
    assert derived(None, "-pruned", ".pt2") == "model-pruned.pt2"
    assert disposition('a"b.pt2') == "attachment; filename=\"a_b.pt2\"; filename*=UTF-8''a%22b.pt2"
