"""For each request: an id, from the client or new; and at its end a line of log, counts and a span.

The query is never logged: it may hold what is nobody else's business. Paths hold ids and file names only.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs import logs, tracing

log = logging.getLogger("api.access")

HEADER = "X-Request-Id"
#: What asks all the time; shown at DEBUG, unless it fails.
_PATIENT = {(b"content-type", b"text/event-stream; charset=utf-8")}
_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class AccessLog:
    """The outermost layer: binds the request id, answers with it, and logs how the request ended."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        known = logs.request_id(headers.get(HEADER))
        started, status, received, sent, patient = time.perf_counter(), 0, 0, 0, False

        async def receiving() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            nonlocal status, sent, patient
            if message["type"] == "http.response.start":
                status = message["status"]
                # Such an answer takes as long as the client likes: it says nothing of how quick the service is.
                patient = any(pair in _PATIENT or pair[0] == b"preference-applied" for pair in message["headers"])
                message = {**message, "headers": list(message.get("headers", ()))}
                MutableHeaders(scope=message)[HEADER] = known
            sent += len(message.get("body", b""))
            await send(message)

        with (
            logs.bound(request_id=known),
            tracing.span(scope["method"], parent=headers.get("traceparent"), kind="server") as span,
        ):
            try:
                await self.app(scope, receiving, sending)
            finally:
                seconds = round(time.perf_counter() - started, 4)
                peer = (scope.get("client") or "-")[0]
                method, route = _labels(scope)
                _count(scope, method, route, status, None if patient else seconds, received, sent)
                about = {"http_route": route, "http_status": status, "request_id": known}
                tracing.note(span, name=f"{method} {route}", failed="error" if status >= 500 else None, **about)
                level = logging.DEBUG if scope["path"] in _QUIET and status < 400 else logging.INFO
                log.log(
                    level,
                    "request method=%s path=%s status=%d seconds=%s received=%d sent=%d peer=%s",
                    *(scope["method"], scope["path"], status, seconds, received, sent, peer),
                )


def _labels(scope: Scope) -> tuple[str, str]:
    """Return method and route as labels: of either there are only so many."""
    method, route = scope["method"], scope.get("route")
    return method if method in _METHODS else "other", getattr(route, "path", "unmatched")


def _count(scope: Scope, method: str, route: str, status: int, seconds: float | None, received: int, sent: int) -> None:
    context = getattr(scope["app"].state, "context", None)
    if context is None:
        return
    metrics = context.service.clock.metrics
    metrics.add("pruning_http_requests_total", method=method, route=route, status=str(status) if status else "aborted")
    if seconds is not None:
        metrics.observe("pruning_http_request_seconds", seconds, method=method, route=route)
    metrics.add("pruning_http_bytes_total", received, direction="received")
    metrics.add("pruning_http_bytes_total", sent, direction="sent")
