"""uvicorn's HTTP, with patience that ends: a request's head must come whole, soon, and be of a sane size.

uvicorn waits for ever for the rest of a head, so that a few thousand idle connections would keep everybody else out.
Bodies have their own limits (`api.bodies`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

#: For the request line and all headers.
HEAD_BYTES = 2**16
HEAD_SECONDS = 10.0

_ANSWER = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_Base: Any = AutoHTTPProtocol


class PatientProtocol(_Base):  # type: ignore[misc]
    """One connection."""

    head_seconds = HEAD_SECONDS
    _due: asyncio.TimerHandle | None = None
    _bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take some bytes, and see whether they complete a head."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif before is None or before.response_complete:
            self._wait()
            self._bytes += len(data)
            if self._bytes > HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(self.head_seconds, self._refuse, b"408 Request Timeout")

    def _stop_waiting(self) -> None:
        self._bytes = 0
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(_ANSWER % status)
            self.transport.close()
