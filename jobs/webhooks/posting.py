"""One HTTP POST to a stranger: to a checked address, once, without redirects, proxies or patience."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache

from jobs.settings import Settings
from jobs.webhooks.addresses import Refused, Resolver, Target, addresses, target

_MOST_ADDRESSES = 3


class Failed(Exception):  # noqa: N818
    """Nothing came back that is an answer; the text says why, and nothing of what the other side said."""


def post(
    url: str, body: bytes, headers: Mapping[str, str], settings: Settings, resolver: Resolver | None = None
) -> tuple[int, float | None]:
    """Send, and return the status and the seconds of ``Retry-After``; the body of the answer is never read.

    Raises:
        Failed: No answer, in the time there is.
    """
    deadline = time.monotonic() + settings.webhook_timeout_seconds
    try:
        wanted = target(url, settings)
        found = addresses(wanted, settings, resolver)
    except Refused as error:
        raise Failed(error.detail) from None
    except OSError:
        raise Failed("The host name does not resolve.") from None
    try:
        with _connected(wanted, found, deadline) as connection:
            connection.request("POST", wanted.path, body=body, headers={**headers, "Connection": "close"})
            with closing(connection.getresponse()) as answer:
                if time.monotonic() >= deadline:
                    raise TimeoutError  # cut off, which looks like the end of the headers
                return answer.status, _seconds(answer.getheader("Retry-After"))
    except ssl.SSLCertVerificationError as error:
        raise Failed(f"The certificate is not valid: {error.verify_message}.") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise Failed(f"No answer within {settings.webhook_timeout_seconds:g} seconds.") from None
        raise Failed(f"The connection failed: {type(error).__name__}.") from None


@contextmanager
def _connected(wanted: Target, found: list[str], deadline: float) -> Iterator[http.client.HTTPConnection]:
    """Connect to the first address that answers; at the deadline the connection is cut, whatever goes on."""
    connection = http.client.HTTPConnection(wanted.host, wanted.port, timeout=max(0.1, deadline - time.monotonic()))
    # Of the Host header only: nothing is connected by name.
    connection.default_port = 443 if wanted.secure else 80
    plain = _socket(found, wanted.port, deadline)
    # A timeout is for each single wait: one byte at a time would never run into it.
    handle = plain.dup()
    cut = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [handle])
    cut.daemon = True
    cut.start()
    try:
        connection.sock = _context().wrap_socket(plain, server_hostname=wanted.host) if wanted.secure else plain
        yield connection
    finally:
        cut.cancel()
        handle.close()
        connection.close()
        plain.close()


def _socket(found: list[str], port: int, deadline: float) -> socket.socket:
    failure: OSError | None = None
    for address in found[:_MOST_ADDRESSES]:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            return socket.create_connection((address, port), timeout=left)
        except OSError as error:
            failure = error
    raise failure or TimeoutError


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _seconds(retry_after: str | None) -> float | None:
    text = (retry_after or "").strip()
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 9 else None
