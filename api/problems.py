"""Every error becomes an RFC 9457 problem document, in one place."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import (
    InsufficientScope,
    InvalidRequest,
    MethodNotAllowed,
    NoSuchPath,
    RangeNotSatisfiable,
    Unauthenticated,
    UploadCut,
)
from jobs.errors import Unavailable
from pruning_core.errors import PROBLEM_TYPE, PruningError

MEDIA_TYPE = "application/problem+json"
_RETRY_SECONDS = "2"

log = logging.getLogger("api")


def problem_response(error: PruningError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the problem document of an error as a response."""
    document = error.problem()
    extra = dict(headers or {})
    if isinstance(error, RangeNotSatisfiable):
        extra["Content-Range"] = f"bytes */{error.extensions['size']}"
    if isinstance(error, Unauthenticated):
        extra["WWW-Authenticate"] = error.challenge
    if isinstance(error, InsufficientScope):
        extra["WWW-Authenticate"] = (
            f'Bearer realm="pruning-service", error="insufficient_scope", scope="{error.expected}"'
        )
    if "retry_after" in error.extensions:
        extra["Retry-After"] = str(error.extensions["retry_after"])
    if error.status == 429 or isinstance(error, Unavailable):
        extra.setdefault("Retry-After", _RETRY_SECONDS)
    body = json.dumps(document, ensure_ascii=False, default=str).encode("utf-8", "replace")
    return Response(body, status_code=error.status, headers=extra, media_type=MEDIA_TYPE)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Register the handlers of everything that an endpoint may raise.

    Args:
        app: The app.
        routes: All its routes: a 405 says which methods the path knows.
    """

    async def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, PruningError)
        if error.status >= 500:
            log.warning("%s: %s", error.slug, error.detail)
        return problem_response(error)

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(invalid_request(error.errors()))

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return problem_response(_no_such_path(request))
        if error.status_code == 405:
            allowed = _methods(request, routes)
            return problem_response(_method_not_allowed(request, allowed), {"Allow": ", ".join(allowed)})
        document = {"type": "about:blank", "title": str(error.detail), "status": error.status_code}
        return Response(json.dumps(document), error.status_code, error.headers, MEDIA_TYPE)

    async def gone(_request: Request, _error: Exception) -> Response:
        return problem_response(UploadCut("The connection ended before the body did; nothing was stored."))

    app.add_exception_handler(PruningError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(ClientDisconnect, gone)


def invalid_request(errors: Any, prefix: str = "") -> InvalidRequest:
    """Return the problem of pydantic's list of errors: one ``{"field", "problem"}`` for each.

    Args:
        errors: What ``ValidationError.errors()`` returns.
        prefix: Where the validated value stands, put before each field.
    """
    listed = [
        {
            "field": ".".join(str(part) for part in ((prefix,) if prefix else ()) + tuple(error["loc"])),
            "problem": str(error["msg"]).removeprefix("Value error, "),
        }
        for error in errors
    ]
    return InvalidRequest(
        "The request cannot be used: " + "; ".join(f"{e['field']}: {e['problem']}" for e in listed),
        advice="GET /docs shows every call with its fields.",
        errors=listed,
    )


class LastResort:
    """Around all that answers: what nobody expected becomes a 500 problem that shows nothing of the inside."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Catch what got through everything else."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            incident = secrets.token_hex(6)
            log.exception("incident %s: %s %s", incident, scope["method"], scope["path"])
            if started:
                raise
            error = PruningError(
                "Something went wrong inside the service; it is not your request's fault.",
                advice="Try again; if it stays, tell the operator the incident: the log has more under it.",
                incident=incident,
            )
            await problem_response(error)(scope, receive, send)


def responses(*errors: type[PruningError], **described: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI ``responses`` of an operation that may end in these errors.

    Args:
        errors: Error classes; those of one status share one entry.
        described: Further text for an error, by its slug with underscores.
    """
    found: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        text = described.get(error.slug.replace("-", "_"), _summary(error))
        entry = found.setdefault(
            error.status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        entry["description"] = "; ".join(filter(None, (entry["description"], f"`{error.slug}`: {text}")))
        example = {"type": PROBLEM_TYPE + error.slug, "title": error.title, "status": error.status, "detail": text}
        entry["content"][MEDIA_TYPE]["examples"][error.slug] = {"value": example}
    return found


SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "An RFC 9457 problem document. Match on `type`; the rest is for people.",
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "description": f"Stable; `{PROBLEM_TYPE}` and a name."},
        "title": {"type": "string", "description": "The same for all problems of this type."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What happened this time."},
        "expected": {"description": "What would have been right."},
        "received": {"description": "What came instead."},
        "advice": {"type": "string", "description": "What to do."},
        "errors": {
            "type": "array",
            "description": "Each field that is wrong.",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
    },
    "additionalProperties": True,
}


def _summary(error: type[PruningError]) -> str:
    return (error.__doc__ or error.title).strip().split("\n")[0]


def _no_such_path(request: Request) -> NoSuchPath:
    return NoSuchPath(
        f"There is nothing at {request.url.path[:200]}.",
        received=request.url.path[:200],
        advice="GET /docs lists every call.",
    )


def _method_not_allowed(request: Request, allowed: list[str]) -> MethodNotAllowed:
    return MethodNotAllowed(
        f"{request.url.path[:200]} does not know {request.method}.",
        expected=allowed,
        received=request.method,
        advice="GET /docs lists every call.",
    )


def _methods(request: Request, routes: Sequence[BaseRoute]) -> list[str]:
    """Return every method this path knows: several routes may share it, each with its own."""
    matching = [route for route in routes if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE]
    found = {method for route in matching for method in route.methods or ()}
    return sorted(found)
