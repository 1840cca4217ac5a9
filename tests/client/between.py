"""Between client and service: a real TCP proxy that loses, cuts and refuses as a test asks, and notes what passed."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from cli.embedded import LOOPBACK

_HEAD = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)


@dataclass(kw_only=True)
class Fault:
    """What happens to the next requests like this.

    Args:
        like: A pattern for "METHOD /path".
        what: ``answer lost``: it gets through, the answer does not; ``cut sending``: after so many bytes of it;
            ``cut answer``: after so many bytes of its body; ``instead``: this answer, and it does not get through.
        after: How many bytes.
        answer: Head and body.
        times: How often.
    """

    like: str
    what: Literal["answer lost", "cut sending", "cut answer", "instead"]
    after: int = 0
    answer: bytes = b""
    times: int = 1


@dataclass
class Between:
    """The proxy: ``requests`` has "METHOD /path?query" of each, ``headers`` the rest of its head."""

    upstream: int
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def count(self, like: str) -> int:
        return sum(re.match(like, request) is not None for request in self.requests)

    def _fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.match(fault.like, request):
                fault.times -= 1
                return fault
        return None

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.connected(reader, writer)
        finally:
            self.tasks.discard(task)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            match = _HEAD.fullmatch(head)
            assert match is not None, head
            request = f"{match[1].decode()} {match[2].decode()}"
            self.requests.append(request)
            self.heads.append(match[3].decode())
            fault = self._fault(request)
            if fault is not None and fault.what == "instead":
                writer.write(fault.answer)
                await writer.drain()
                return
            from_server, to_server = await asyncio.open_connection(LOOPBACK, self.upstream)
            # One request per connection, so that a fault meets one request only.
            to_server.write(head[:-2] + b"Connection: close\r\n\r\n")
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._up(reader, to_server, fault))
                ways.create_task(self._down(from_server, writer, fault))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, to_server):
                if end is not None:
                    end.close()
                    with suppress(OSError):
                        await end.wait_closed()

    async def _up(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter, fault: Fault | None) -> None:
        passed = 0
        while data := await reader.read(2**16):
            passed += len(data)
            if fault is not None and fault.what == "cut sending" and passed > fault.after:
                raise ConnectionError
            to_server.write(data)
            await to_server.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
        passed, first = 0, True
        while data := await reader.read(2**16):
            if fault is not None and fault.what == "answer lost":
                raise ConnectionError
            if fault is not None and fault.what == "cut answer":
                if first:  # the head comes in one piece
                    passed, first = -(data.index(b"\r\n\r\n") + 4), False
                if passed + len(data) > fault.after:
                    writer.write(data[: max(0, fault.after - passed)])
                    await writer.drain()
                    raise ConnectionError
            passed += len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionError  # the server has closed: so is this


@contextmanager
def between(upstream: int) -> Iterator[Between]:
    """Run a proxy in front of this port, in a thread of its own."""
    proxy, listening = Between(upstream), threading.Event()

    async def serve() -> None:
        proxy_stopped.append(asyncio.Event())
        server = await asyncio.start_server(proxy.accepted, LOOPBACK, 0, limit=2**20)
        proxy.port = server.sockets[0].getsockname()[1]
        listening.set()
        await proxy_stopped[0].wait()
        server.close()
        # A connection that came last has its task, but has not begun.
        await asyncio.sleep(0)
        for task in (left := list(proxy.tasks)):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    proxy_stopped: list[asyncio.Event] = []
    loop = asyncio.new_event_loop()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert listening.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(proxy_stopped[0].set)
        thread.join(10)
