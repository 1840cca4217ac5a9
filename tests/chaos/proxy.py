"""Between the service and its S3 server: passes bytes on, late or not at all, and notes every outcome written."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from dataclasses import dataclass, field
from typing import Literal

from cli.embedded import LOOPBACK

_REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) /")
_OUTCOME = re.compile(rb"PUT /[^/ ]+/jobs/(job_\w+)/outcome\.json ")
_DIGEST = re.compile(rb"x-amz-content-sha256: *(\w+)", re.IGNORECASE)
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_REFUSAL = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: "
    + str(len(_SLOW_DOWN)).encode()
    + b"\r\n\r\n"
    + _SLOW_DOWN
)

Error = Literal["refused", "cut", "answer lost"]
ERRORS: tuple[Error, ...] = ("refused", "cut", "answer lost")


@dataclass
class Link:
    """One connection: what was asked last, and what is to become of the answer."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    outcome: tuple[str, str] | None = None
    swallow: bool = False


@dataclass
class S3Proxy:
    """A proxy in a thread of its own.

    Attributes:
        latency: Seconds that each piece of data waits, both ways.
        error_rate: Share of requests that end in one of `ERRORS`.
        written: Job -> digests of the outcomes that the server said it had stored.
        injected: How many requests ended in which error.
    """

    upstream: int
    seed: int = 0
    latency: float = 0.0
    error_rate: float = 0.0
    port: int = 0
    written: dict[str, list[str]] = field(default_factory=dict)
    injected: dict[Error, int] = field(default_factory=lambda: dict.fromkeys(ERRORS, 0))

    def start(self) -> None:
        self._random = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()
        listening = threading.Event()

        async def serve() -> None:
            self._stopped = asyncio.Event()
            server = await asyncio.start_server(self._connected, LOOPBACK, 0)
            self.port = server.sockets[0].getsockname()[1]
            listening.set()
            await self._stopped.wait()
            server.close()

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels every connection at its end
                runner.run(serve())

        self._thread = threading.Thread(target=run, name="s3-proxy", daemon=True)
        self._thread.start()
        assert listening.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(LOOPBACK, self.upstream)
        except OSError:
            writer.transport.abort()
            return
        link = Link(client=writer, server=to_server)
        try:
            await asyncio.gather(self._requests(reader, link), self._answers(from_server, link))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            to_server.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, link: Link) -> None:
        while data := await reader.read(2**16):
            if self.latency:
                await asyncio.sleep(self.latency)
            if _REQUEST.match(data):
                link.swallow = False
                if self._random.random() < self.error_rate:
                    error = self._random.choice(ERRORS)
                    self.injected[error] += 1
                    if error == "refused":
                        link.client.write(_REFUSAL)
                        await link.client.drain()
                    if error != "answer lost":
                        raise ConnectionError
                    link.swallow = True
                found, digest = _OUTCOME.match(data), _DIGEST.search(data)
                link.outcome = (found[1].decode(), digest[1].decode()) if found and digest else None
            link.server.write(data)
            await link.server.drain()
        link.server.write_eof()

    async def _answers(self, reader: asyncio.StreamReader, link: Link) -> None:
        while data := await reader.read(2**16):
            answer = data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            if link.outcome and re.match(rb"HTTP/1\.\d 2", answer):
                job, digest = link.outcome
                self.written.setdefault(job, []).append(digest)
                link.outcome = None
            if link.swallow and answer:
                raise ConnectionError
            if self.latency:
                await asyncio.sleep(self.latency)
            link.client.write(data)
            await link.client.drain()
        raise ConnectionError  # the server has closed
