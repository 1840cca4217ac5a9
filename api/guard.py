"""What stands before every call: who is answered, and how a refused upload ends.

Without keys the service trusts this machine, and answers no other. Two ways lead around that through a browser: DNS
rebinding (a foreign name that resolves to loopback: refused by its ``Host``) and requests across sites (refused by
their ``Origin``).
"""

from __future__ import annotations

import asyncio
import re
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ForeignOrigin, RemoteRefused, UnknownHost
from api.problems import problem_response
from api.settings import ApiSettings, is_loopback
from pruning_core.errors import PruningError

_FORWARDED_FOR = re.compile(r'(?i)\bfor="?(\[[^]]*\]|[^;,":\s]*)')
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


class Guard:
    """Refuses other machines, unknown host names and foreign origins."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the refusal, or let the request through."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await problem_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> PruningError | None:
        headers, settings = Headers(scope=scope), self.settings
        host = headers.get("host", "")
        peer = scope["client"][0] if scope.get("client") else None
        if not settings.keys_required and ((peer is not None and not is_loopback(peer)) or _is_relayed(headers)):
            return RemoteRefused(
                "This service has no keys, so it answers only the machine it runs on.",
                advice="The operator may set PRUNING_API_KEYS=required, and give you a key.",
            )
        if not self._is_our_name(_host_name(host)):
            return UnknownHost(
                "The Host header is not a name of this service.",
                expected="localhost, a loopback address, or a name in PRUNING_API_ALLOWED_HOSTS",
                received=host[:200],
            )
        if scope["method"] not in _SAFE_METHODS and self._is_foreign(headers, host):
            return ForeignOrigin(
                "A web page of another origin may not change anything here.",
                expected=f"no Origin header, or http://{host}",
                received=headers.get("origin", headers.get("sec-fetch-site", ""))[:200],
                advice="The operator may list it in PRUNING_API_ALLOWED_ORIGINS.",
            )
        return None

    def _is_our_name(self, name: str | None) -> bool:
        allowed = self.settings.allowed_hosts
        if self.settings.keys_required and not allowed:
            return True  # no browser adds a key by itself: a foreign name gains nobody anything
        return name is not None and (is_loopback(name) or name in allowed or "*" in allowed)

    def _is_foreign(self, headers: Headers, host: str) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") in {"cross-site", "same-site"}
        if origin.lower() in self.settings.allowed_origins:
            return False
        scheme, separator, authority = origin.lower().partition("://")
        return not separator or scheme not in {"http", "https"} or authority != host.lower()


class PlainPaths:
    """Takes ``/models/`` for ``/models``: a redirect would make the client send its file twice."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Strip trailing slashes."""
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            # In place: the layers outside see what the router makes of it.
            scope["path"] = scope["path"].rstrip("/") or "/"
        await self.app(scope, receive, send)


class Linger:
    """Ends a refused upload politely.

    When the answer is an error and the client still sends, closing at once would reset the connection and the client
    might never read the answer. So the answer goes out whole, the rest of the body is thrown away for a moment (the
    client sees the answer and stops), and then the connection is closed.
    """

    def __init__(self, app: ASGIApp, *, seconds: float = 2.0) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything through; if an error goes out before the body came in whole, linger."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        unread, lingering = True, False

        async def reading() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal lingering
            if message["type"] == "http.response.start" and message["status"] >= 400 and unread:
                lingering = True
                message = {**message, "headers": list(message["headers"])}
                MutableHeaders(scope=message)["Connection"] = "close"
            if lingering and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _discard(reading, lambda: unread, self.seconds)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self.app(scope, reading, sending)


async def _discard(receive: Receive, unread: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    assert callable(unread)
    while unread():
        try:
            await asyncio.wait_for(receive(), deadline - time.monotonic())
        except TimeoutError:
            return


def _is_relayed(headers: Headers) -> bool:
    """Return whether a proxy says that it speaks for another machine (X-Forwarded-For: uvicorn makes that the peer)."""
    named = headers.getlist("x-real-ip") + _FORWARDED_FOR.findall(";".join(headers.getlist("forwarded")))
    return not all(is_loopback(name.strip('"[]')) for name in named)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _host_name(host: str) -> str | None:
    """Return the name in a Host header, without port and brackets; None if there is none or it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if not host or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname.rstrip(".") if parts.hostname else None
