"""A small HTTP/1.1 load generator: so many connections, each sends its next request when the last is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cli.embedded import LOOPBACK


@dataclass(frozen=True, kw_only=True)
class Load:
    """What was seen: requests per second, and percentiles of the time to the last byte, in milliseconds."""

    per_second: float
    p50: float
    p99: float
    requests: int


def load(port: int, paths: Iterator[str], *, connections: int, seconds: float) -> Load:
    """Send GET requests on loopback for so many seconds.

    Args:
        port: Of the server.
        paths: What to ask for, one after another; endless.
        connections: How many requests are under way at one time.
        seconds: How long.

    Raises:
        RuntimeError: An answer was not 200.
    """
    return asyncio.run(_load(port, paths, connections, seconds))


async def _load(port: int, paths: Iterator[str], connections: int, seconds: float) -> Load:
    times: list[float] = []
    began = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        try:
            while time.perf_counter() - began < seconds:
                path = next(paths)
                sent = time.perf_counter()
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nAccept: */*\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"{path}: {head[:200]!r}")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                times.append(time.perf_counter() - sent)
        finally:
            writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    took = time.perf_counter() - began
    times.sort()
    return Load(
        per_second=len(times) / took,
        p50=1000 * times[len(times) // 2],
        p99=1000 * times[int(0.99 * len(times))],
        requests=len(times),
    )
