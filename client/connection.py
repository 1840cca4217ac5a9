"""Where the service is and which key opens it; how a `Request` becomes one of httpx."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable
from typing import Protocol

import httpx

from client.effects import Request
from client.errors import ClientError

DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_SECONDS = 10.0


class Builds(Protocol):
    """What both clients of httpx can do."""

    def build_request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | Iterable[bytes] | AsyncIterable[bytes] | None,
        params: dict[str, str] | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """Return a request."""


class Connection:
    """The address of a service, and its key, which neither ``repr`` nor an error shows.

    Args:
        url: Base URL; default: ``PRUNING_URL``, else the service of this machine.
        key: API key; default: ``PRUNING_API_KEY``, else none.

    Raises:
        ClientError: One of them cannot be used.
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self.url = (url or os.environ.get("PRUNING_URL") or DEFAULT_URL).rstrip("/")
        key = (key if key is not None else os.environ.get("PRUNING_API_KEY", "")).strip()
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ClientError(f"The URL of the service cannot be used: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.userinfo:
            raise ClientError(f"The URL of the service cannot be used; expected one like {DEFAULT_URL}.")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ClientError("The API key cannot be used; expected a token like prk_…, without spaces.")
        self.__key = key

    def __repr__(self) -> str:
        """Return where it goes, and whether there is a key."""
        return f"Connection({self.url!r}, key={'set' if self.__key else 'none'})"

    def request(
        self, http: Builds, wanted: Request, content: bytes | Iterable[bytes] | AsyncIterable[bytes] | None
    ) -> httpx.Request:
        """Return a request; its key goes to the service only, never to a URL from elsewhere."""
        # Bytes as they are: digests and ranges are of those.
        headers = {"Accept-Encoding": "identity", **wanted.headers}
        if wanted.trusted and self.__key:
            headers["Authorization"] = f"Bearer {self.__key}"
        if wanted.body is not None and not isinstance(wanted.body, bytes):
            headers["Content-Length"] = str(wanted.body.size)
        return http.build_request(
            wanted.method,
            self.url + wanted.url if wanted.trusted else wanted.url,
            content=content,
            params={name: str(value) for name, value in wanted.params.items()} or None,
            headers=headers,
            timeout=httpx.Timeout(wanted.silence, connect=_CONNECT_SECONDS),
        )
