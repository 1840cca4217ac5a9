"""The request id, from the client or new, and one line of log for each request when it has ended.

The query is never logged: it may hold what is nobody else's business. Paths hold ids and file names only.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs import logs

log = logging.getLogger("api.access")

HEADER = "X-Request-Id"
#: What asks all the time; shown at DEBUG, unless it fails.
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
        known = logs.request_id(Headers(scope=scope).get(HEADER))
        started, status, received, sent = time.perf_counter(), 0, 0, 0

        async def receiving() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": list(message.get("headers", ()))}
                MutableHeaders(scope=message)[HEADER] = known
            sent += len(message.get("body", b""))
            await send(message)

        with logs.bound(request_id=known):
            try:
                await self.app(scope, receiving, sending)
            finally:
                seconds = round(time.perf_counter() - started, 4)
                peer = (scope.get("client") or "-")[0]
                level = logging.DEBUG if scope["path"] in _QUIET and status < 400 else logging.INFO
                log.log(
                    level,
                    "request method=%s path=%s status=%d seconds=%s received=%d sent=%d peer=%s",
                    *(scope["method"], scope["path"], status, seconds, received, sent, peer),
                )
