"""Read a small JSON body: capped, strict, and forgiving only about what ``curl -d`` calls it."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from api.bodies import check_declared_size, chunks
from api.errors import MalformedRequest, UnsupportedContentType, UploadStalled
from api.problems import invalid_request
from api.settings import ApiSettings

M = TypeVar("M", bound=BaseModel)
_EXPECTED = "application/json"
# The second is what `curl -d` says when it is told nothing. Browsers can send it across sites without asking: the
# check of the Origin header (api.guard) stands before this.
_ACCEPTED = {"application/json", "application/x-www-form-urlencoded", ""}


async def read_json(request: Request, settings: ApiSettings) -> Any:
    """Return the parsed body.

    Raises:
        UnsupportedContentType: It is declared as something else than JSON.
        TooLarge: It is longer than the settings allow.
        UploadStalled: It does not come whole soon.
        MalformedRequest: It is not JSON, has a field twice, or a number that JSON does not know.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared not in _ACCEPTED and not (declared.startswith("application/") and declared.endswith("+json")):
        raise UnsupportedContentType("This call reads JSON.", expected=_EXPECTED, received=declared)
    check_declared_size(request, settings.max_json_bytes)
    body = bytearray()
    try:
        # Altogether, not between two chunks: it is small, and drops of it must not hold a connection for long.
        async with asyncio.timeout(settings.idle_seconds):
            async for chunk in chunks(request, limit=settings.max_json_bytes, idle_seconds=settings.idle_seconds):
                body += chunk
    except TimeoutError:
        raise UploadStalled(f"The body did not come whole within {settings.idle_seconds:g} s.") from None
    try:
        document = json.loads(
            body.decode("utf-8-sig"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
        # Half a surrogate pair is legal JSON and no text: it could not be stored.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedRequest(
            f"The body is not JSON: {why}.", expected="a JSON object", received=body[:60].decode("utf-8", "replace")
        ) from None
    return document


async def read_as(request: Request, settings: ApiSettings, model: type[M]) -> M:
    """Return the body as a model; see `read_json`.

    Raises:
        InvalidRequest: It is JSON, but no such model; each wrong field is named.
    """
    return validated(await read_json(request, settings), model)


def validated(document: Any, model: type[M]) -> M:
    """Return a document as a model.

    Raises:
        InvalidRequest: It is none; each wrong field is named.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False), "body") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the field {twice[:100]!r} is there twice")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number
