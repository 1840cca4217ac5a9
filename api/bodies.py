"""Request bodies as streams of blocks: raw or multipart form, with every limit, and never the whole body at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.errors import InvalidRequest, MalformedRequest, UploadStalled
from jobs.errors import DigestMismatch, TooLarge

#: Blocks are gathered to this size: few crossings between event loop and thread, little memory.
BLOCK_BYTES = 2**20
FILE_FIELD = "file"
_FORM_OVERHEAD_BYTES = 2**16


def check_declared_size(request: Request, limit: int) -> None:
    """Refuse a body by its ``Content-Length``, before a byte of it is read.

    Raises:
        TooLarge: It declares more than ``limit`` bytes.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large(limit, int(declared))


def too_large(limit: int, received: int | None = None) -> TooLarge:
    """Return the error of a body over the limit."""
    return TooLarge(
        f"The body is larger than {limit} bytes, the most that is accepted here.",
        expected=f"at most {limit} bytes",
        received=None if received is None else f"{received} bytes",
    )


async def chunks(request: Request, *, limit: int, idle_seconds: float) -> AsyncGenerator[bytes, None]:
    """Yield the body as it comes from the network.

    Args:
        request: The request; its body is consumed.
        limit: More bytes than this are refused, also when their number was not declared.
        idle_seconds: How long the client may send nothing.

    Raises:
        TooLarge: More than ``limit`` bytes came.
        UploadStalled: Nothing came for ``idle_seconds``.
        ClientDisconnect: The connection ended before the body.
    """
    size = 0
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                async with asyncio.timeout(idle_seconds):
                    chunk = await anext(stream, b"")
            except TimeoutError:
                raise UploadStalled(
                    f"Nothing came for {idle_seconds:g} s; what had come was thrown away.",
                    advice="Send the file again.",
                ) from None
            if not chunk:
                return
            size += len(chunk)
            if size > limit:
                raise too_large(limit)
            yield chunk


async def blocks(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Gather chunks to blocks of about `BLOCK_BYTES`; the last may be smaller, none is empty."""
    gathered = bytearray()
    async for chunk in source:
        gathered += chunk
        if len(gathered) >= BLOCK_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


class FormFile:
    """The one file of a ``multipart/form-data`` body, parsed as it streams by; nothing is spooled to disk.

    Attributes:
        filename: What the client called the file; known before the first block is yielded.
    """

    def __init__(self, content_type: str, *, limit: int, body_sha256: str | None = None) -> None:
        """Prepare to parse.

        Args:
            content_type: The request's header; it carries the boundary.
            limit: The most bytes that the file may have.
            body_sha256: What the digest of the body as sent (the whole form) must be: that is what ``Content-Digest``
                means with a form.

        Raises:
            MalformedRequest: There is no usable boundary.
        """
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise _malformed("it has no boundary")
        self.filename: str | None = None
        self._opening, self._at = b"--" + boundary, 0
        self._limit, self._body_sha256 = limit, body_sha256
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._files = 0
        self._size = 0
        self._ended = False
        self._data: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None

    async def stream(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the bytes of the file.

        Raises:
            MalformedRequest: The form is broken or cut.
            InvalidRequest: It has another field than `FILE_FIELD`, or not exactly one of that.
            TooLarge: The file is larger than the limit.
            DigestMismatch: The body as sent has another digest than announced.
        """
        digest = hashlib.sha256() if self._body_sha256 is not None else None
        async for chunk in body:
            if digest is not None:
                digest.update(chunk)
            self._check_opening(chunk)
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _malformed(str(error)) from None
            for data in self._data:
                yield data
            self._data.clear()
        if not self._ended:
            raise _malformed("it ends before its last boundary")
        if self._files == 0:
            raise _wrong_field("no such field")
        if digest is not None and digest.hexdigest() != self._body_sha256:
            raise DigestMismatch(
                "The body does not have the SHA-256 that Content-Digest announced (a form's, not its file's).",
                expected=self._body_sha256,
                received=digest.hexdigest(),
                advice="To announce the digest of the file itself, send ?sha256=.",
            )

    def _check_opening(self, chunk: bytes) -> None:
        """Refuse what stands before the first boundary: the parser skips it or not, as the network cuts it."""
        if chunk and self._at == 0 and chunk[:1] == b"\r":
            self._opening = b"\r\n" + self._opening
        wanted = self._opening[self._at : self._at + len(chunk)]
        if chunk[: len(wanted)] != wanted:
            raise _malformed("it does not begin with its boundary")
        self._at += len(wanted)

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        self._disposition = b""
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self._files += name == FILE_FIELD
        if name != FILE_FIELD or self._files > 1:
            raise _wrong_field(f"a second field {name!r}" if name == FILE_FIELD else f"a field {name[:100]!r}")
        self.filename = options[b"filename"].decode("utf-8", "replace") if b"filename" in options else None

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self._limit:
            raise too_large(self._limit)
        self._data.append(data[start:end])

    def _on_end(self) -> None:
        self._ended = True


def form_limit(limit: int) -> int:
    """Return how long the body of a form may be that holds a file of ``limit`` bytes."""
    return limit + _FORM_OVERHEAD_BYTES


def _malformed(why: str) -> MalformedRequest:
    return MalformedRequest(
        f"The form cannot be read: {why}.",
        expected="multipart/form-data with one field 'file'",
        advice="curl -F file=@FILE does it.",
    )


def _wrong_field(received: str) -> InvalidRequest:
    return InvalidRequest(
        "The form must have exactly one field, named 'file'.",
        expected="one field 'file'",
        received=received,
        advice="curl -F file=@FILE does it.",
    )
