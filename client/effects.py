"""What an operation asks of whoever runs it.

An operation is a generator: it yields an effect, is sent the effect's result (or thrown the `httpx.TransportError`
that it met), and returns what the caller wanted. It does no input or output over the network itself, so the same
operations serve the client that blocks and the one that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import httpx

T = TypeVar("T")
_BLOCK_BYTES = 1 << 17


def _ignore(_count: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """Bytes of a file, sent as they are read.

    Args:
        path: The file.
        start: Where they begin.
        size: How many.
        sent: Told how many have been handed to the connection, from 0 again with each attempt.
    """

    path: Path
    start: int
    size: int
    sent: Callable[[int], None] = _ignore

    def blocks(self) -> Generator[bytes, None, None]:
        """Read the bytes."""
        done = 0
        with self.path.open("rb") as file:
            file.seek(self.start)
            while done < self.size and (block := file.read(min(_BLOCK_BYTES, self.size - done))):
                yield block
                done += len(block)
                self.sent(done)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request, before it is known who sends it.

    Args:
        method: As in HTTP.
        url: A path of the service; or, if not ``trusted``, a whole URL elsewhere, which is not told the key.
        params: Of the query.
        headers: Further ones.
        body: The bytes, or where they are.
        silence: Seconds without a byte after which the connection is given up.
        trusted: Whether it goes to the service itself.
    """

    method: str
    url: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileRange | None = field(default=None, repr=False)
    silence: float = 60.0
    trusted: bool = True


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back; of a stream that was opened the body is empty, unless it is an error."""

    status: int
    headers: httpx.Headers
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Send:
    """Send a request and read the whole answer. Result: `Answer`."""

    request: Request


@dataclass(frozen=True)
class Open:
    """Send a request and read the head of the answer; whatever was open before is closed. Result: `Answer`."""

    request: Request


@dataclass(frozen=True)
class Read:
    """Read what comes next of the open answer. Result: bytes, empty at its end."""


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Do something that takes a while and may block. Result: what it returns."""

    do: Callable[[], Any]


@dataclass(frozen=True)
class Emit:
    """Hand something to the caller at once."""

    value: Any


Effect: TypeAlias = Send | Open | Read | Sleep | Work | Emit
Operation: TypeAlias = Generator[Effect, Any, T]
