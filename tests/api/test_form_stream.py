"""The form parser and the crossing to the thread, without a server."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.bodies import BLOCK_BYTES, FormFile, blocks
from api.errors import InvalidRequest, MalformedRequest
from api.transfers import fetch, store
from jobs.errors import DigestMismatch, TooLarge, Unavailable
from pruning_core.errors import PruningError

TYPE = "multipart/form-data; boundary=XyZ"


def part(name: str, data: bytes, filename: str | None = "net.pt2") -> bytes:
    named = f'; filename="{filename}"' if filename else ""
    head = f'--XyZ\r\nContent-Disposition: form-data; name="{name}"{named}\r\nContent-Type: a/b\r\n\r\n'
    return head.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XyZ--\r\n"


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def parse(body: bytes, size: int = 7, *, limit: int = 10**6, sha256: str | None = None) -> tuple[bytes, str | None]:
    async def run() -> tuple[bytes, str | None]:
        file = FormFile(TYPE, limit=limit, body_sha256=sha256)
        return b"".join([data async for data in file.stream(pieces(body, size))]), file.filename

    return anyio.run(run)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_however_the_network_cuts_it_the_file_comes_out_whole(data: bytes, size: int) -> None:
    # The bytes of the boundary inside the data would end the part: clients choose another boundary then.
    data = data.replace(b"XyZ", b"...")
    assert parse(form(part("file", data)), size) == (data, "net.pt2")


def test_the_digest_of_a_form_is_that_of_the_whole_body() -> None:
    body = form(part("file", b"data"))
    assert parse(body, sha256=hashlib.sha256(body).hexdigest())[0] == b"data"
    with pytest.raises(DigestMismatch):
        parse(body, sha256=hashlib.sha256(b"data").hexdigest())


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (form(part("file", b"a"), part("file", b"b")), InvalidRequest),
        (form(part("other", b"a")), InvalidRequest),
        (form(part("file", b"a"), part("sha256", b"b", None)), InvalidRequest),
        (part("file", b"a"), MalformedRequest),  # no last boundary
        (part("file", b"a")[:30], MalformedRequest),
        (b"nonsense", MalformedRequest),
        (b"", MalformedRequest),
        (form(part("file", b"a" * 101)), TooLarge),
    ],
)
def test_a_form_that_is_not_one_file_is_refused(body: bytes, error: type[PruningError]) -> None:
    with pytest.raises(error):
        parse(body, limit=100)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 2000])
def test_a_form_without_a_usable_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(MalformedRequest):
        FormFile(content_type, limit=1)


def test_blocks_keep_the_bytes_and_none_is_large() -> None:
    async def run() -> list[bytes]:
        return [block async for block in blocks(pieces(bytes(3 * BLOCK_BYTES + 5), 65536))]

    assert list(map(len, anyio.run(run))) == [BLOCK_BYTES] * 3 + [5]


async def broken() -> AsyncIterator[bytes]:
    yield b"first"
    raise KeyError("the client left")


def test_a_body_that_breaks_never_looks_whole_to_the_thread() -> None:
    seen: list[str] = []

    def work(stream: Iterator[bytes]) -> None:
        try:
            for block in stream:
                seen.append(block.decode())
            seen.append("whole")
        finally:
            seen.append("end")

    async def run() -> None:
        await store(broken(), work, anyio.CapacityLimiter(1))

    with pytest.raises(KeyError, match="the client left"):
        anyio.run(run)
    assert seen == ["first", "end"]


def test_a_cancelled_upload_never_looks_whole_to_the_thread() -> None:
    seen: list[str] = []

    async def slow() -> AsyncIterator[bytes]:
        yield b"first"
        await anyio.sleep(60)

    def work(stream: Iterator[bytes]) -> None:
        try:
            for _ in stream:
                seen.append("block")
            seen.append("whole")
        except Unavailable:
            seen.append("cut")
            raise

    async def run() -> None:
        with anyio.move_on_after(0.2):
            await store(slow(), work, anyio.CapacityLimiter(1))

    with pytest.raises(Unavailable, match="stopping"):
        anyio.run(run)
    assert seen == ["block", "cut"]


def test_an_error_of_the_thread_comes_out_even_while_the_client_sends() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await anyio.sleep(0)

    def work(stream: Iterator[bytes]) -> None:
        next(stream)
        raise LookupError("the bucket is away")

    async def run() -> None:
        await store(endless(), work, anyio.CapacityLimiter(1))

    with pytest.raises(LookupError, match="the bucket is away"):
        anyio.run(run)


def test_a_download_that_is_not_read_to_its_end_is_closed() -> None:
    closed: list[bool] = []

    def source() -> Iterator[bytes]:
        try:
            yield from [b"a", b"b"]
        finally:
            closed.append(True)

    async def run() -> None:
        stream = fetch(source(), anyio.CapacityLimiter(1))
        assert await anext(stream) == b"a"
        await stream.aclose()  # type: ignore[attr-defined]

    anyio.run(run)
    assert closed == [True]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("preamble", [b"preamble\r\n", b"\r", b"\r\r\n", b"\n", b"\r\n\r\n", b" ", b"\0" * 8, b"--Xy"])
def test_nothing_stands_before_the_first_boundary(preamble: bytes, size: int) -> None:
    """The parser skipped it or refused it, as the network happened to cut it (found by fuzzing)."""
    with pytest.raises(MalformedRequest):
        parse(preamble + form(part("file", b"x")), size)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_one_line_end_before_the_first_boundary_is_forgiven(size: int) -> None:
    assert parse(b"\r\n" + form(part("file", b"x")), size) == (b"x", "net.pt2")
