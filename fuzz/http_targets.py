"""The parsers of the api: JSON bodies, forms, headers, file names, the first bytes of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, get_args

from fastapi import Request
from pydantic import ValidationError

from api import digests, filenames, guard, ranges
from api.bodies import FormFile, check_declared_size
from api.documents import JobRequest
from api.json_bodies import read_json
from api.plans import PlanRequest
from api.problems import invalid_request
from api.settings import ApiSettings
from api.sniff import sniff
from jobs.ids import UploadKind
from pruning_core.errors import PruningError

_SETTINGS = ApiSettings()
_LOOP = asyncio.new_event_loop()


def _done(work: Coroutine[Any, Any, Any]) -> Any:
    return _LOOP.run_until_complete(work)


def _request(body: bytes, headers: list[tuple[bytes, bytes]]) -> Request:
    sent = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return sent.pop()

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    return Request(scope, receive)


def json_body(data: bytes) -> Any:
    """Return a JSON body, after a job and a plan were made of it."""
    document = _done(read_json(_request(data, [(b"content-type", b"application/json")]), _SETTINGS))
    for kind in (JobRequest, PlanRequest):
        try:
            kind.model_validate(document)
        except ValidationError as error:
            refusal = invalid_request(error.errors(include_url=False, include_input=False), "body")
            if refusal.status >= 500:
                raise AssertionError("a body is not the server's fault") from None
    return document


def form(data: bytes) -> None:
    """A form: however the network cuts it, the same file (or a refusal both times) comes out."""
    kind, _, body = data.partition(b"\n")
    declared = kind.decode("latin-1")
    whole, cut = _form(declared, [body]), _form(declared, [body[i : i + 7] for i in range(0, len(body), 7)])
    if (whole is None) != (cut is None) or whole != cut:
        raise AssertionError(f"{str(whole)[:80]} whole, {str(cut)[:80]} cut")
    if whole is None:
        FormFile(declared, limit=1 << 20)


def _form(declared: str, chunks: list[bytes]) -> tuple[str | None, bytes] | None:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def gather() -> tuple[str | None, bytes]:
        file = FormFile(declared, limit=1 << 20)
        content = b"".join([block async for block in file.stream(body())])
        return file.filename, content

    try:
        found: tuple[str | None, bytes] = _done(gather())
    except PruningError as error:
        if error.status >= 500:
            raise
        return None
    filenames.clean(found[0])
    return found


def headers(data: bytes) -> None:
    """The text of a header, as every header that we read ourselves, and as the first bytes of a file."""
    latin, text = data.decode("latin-1"), data.decode("utf-8", "replace")
    checks = (_range, _digest, _names, _host, _size, _sniff)
    refused: PruningError | None = None
    for check in checks:
        try:
            check(latin, text)
        except PruningError as error:
            refused = error
    if refused is not None:
        raise refused


def _range(latin: str, _text: str) -> None:
    for size in (0, 1, 1000, 2**62):
        span = ranges.wanted_span(latin, size)
        if span is not None and not 0 <= span.start <= span.end < size:
            raise AssertionError(f"{span} of {size}")
    ranges.lists_etag(latin, '"a"')
    ranges.range_applies(latin, '"a"')


def _digest(latin: str, text: str) -> None:
    try:
        found = digests.from_header(latin)
        if found is not None and digests.from_header(digests.as_header(found)) != found:
            raise AssertionError("a digest written and read again differs")
    finally:
        digests.from_query(text)


def _names(_latin: str, text: str) -> None:
    name = filenames.clean(text)
    if name is not None:
        if "/" in name or "\\" in name or not name.isprintable() or len(name) > 200 or name in (".", ".."):
            raise AssertionError(f"not clean: {name!r}")
        for given in (name, filenames.derived(name, "-pruned"), filenames.derived(name, "-masks", ".safetensors")):
            header = filenames.disposition(given).encode("latin-1")
            if b"\r" in header or b"\n" in header or header.count(b'"') != 2:
                raise AssertionError(f"breaks out of its header: {header!r}")


def _host(latin: str, _text: str) -> None:
    name = guard._host_name(latin)
    if name is not None and ("/" in name or "@" in name):
        raise AssertionError(f"no host name: {name!r}")
    for header in (b"origin", b"host", b"content-length"):
        scope = {
            "type": "http",
            "method": "POST",
            "headers": [(b"host", b"localhost"), (header, latin.encode("latin-1"))],
        }
        guard.Guard(None, _SETTINGS)._refusal(scope)  # type: ignore[arg-type]


def _size(latin: str, _text: str) -> None:
    check_declared_size(_request(b"", [(b"content-length", latin.encode("latin-1"))]), 1 << 20)


def _sniff(latin: str, _text: str) -> None:
    refused = None
    for kind in get_args(UploadKind):
        try:
            sniff(kind, latin.encode("latin-1")[:512])
        except PruningError as error:
            refused = error
    if refused is not None:
        raise refused
