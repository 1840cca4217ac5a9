"""Between the event loop and the bucket's threads: bounded, both ways, in constant memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import anyio
from anyio import from_thread, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from jobs.errors import Unavailable

T = TypeVar("T")
#: Blocks that may wait between network and bucket. When they do, the client is slowed down.
_WAITING_BLOCKS = 2


class Shares:
    """So many uploads of each tenant go on at one time: one tenant's slow ones do not keep all others out."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._of: dict[str, anyio.CapacityLimiter] = {}

    def of(self, tenant: str) -> anyio.CapacityLimiter:
        """Return what an upload of this tenant holds while it goes on."""
        return self._of.setdefault(tenant, anyio.CapacityLimiter(self._each))


class _End:
    """Said last by a stream that came whole."""


_Item = bytes | Exception | _End


async def store(body: AsyncIterator[bytes], work: Callable[[Iterator[bytes]], T], limiter: anyio.CapacityLimiter) -> T:
    """Run blocking ``work`` on a stream, in a thread.

    The iterator that ``work`` gets blocks until data comes, ends only after the whole body came, and raises whatever
    ended the body otherwise: so a cut upload is never taken for a whole one.

    Args:
        body: Blocks of bytes; an error it raises comes out of the iterator in the thread.
        work: Consumes the iterator; its result is returned.
        limiter: Bounds how many threads do this at one time.

    Raises:
        Unavailable: The server stops while the body still comes.
        Exception: Whatever ``body`` or ``work`` raised.
    """
    sender, receiver = anyio.create_memory_object_stream[_Item](_WAITING_BLOCKS)
    outcome: list[T | Exception] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_pump, body, sender)
        try:
            outcome.append(await to_thread.run_sync(work, _pull(receiver), limiter=limiter))
        except Exception as error:  # raised again below, outside the task group
            outcome.append(error)
        tasks.cancel_scope.cancel()
        receiver.close()
    (result,) = outcome
    if isinstance(result, Exception):
        raise result
    return result


async def _pump(body: AsyncIterator[bytes], sender: MemoryObjectSendStream[_Item]) -> None:
    async with sender:
        try:
            async for block in body:
                await sender.send(block)
            await sender.send(_End())
        except anyio.BrokenResourceError:
            return
        except Exception as error:  # the consumer's to know
            await sender.send(error)


def _pull(receiver: MemoryObjectReceiveStream[_Item]) -> Iterator[bytes]:
    while True:
        try:
            item = from_thread.run(receiver.receive)
        except BaseException as error:
            # The request was cancelled: the server stops. In no case is this the end of a whole body.
            raise Unavailable("The service is stopping; nothing was stored.", advice="Send the file again.") from error
        if isinstance(item, _End):
            return
        if isinstance(item, Exception):
            raise item
        yield item


async def fetch(blocks: Iterator[bytes], limiter: anyio.CapacityLimiter) -> AsyncIterator[bytes]:
    """Yield from a blocking iterator, one block ahead of the network at most; close it at the end, whatever happens."""
    try:
        while (block := await to_thread.run_sync(next, blocks, b"", limiter=limiter)) != b"":
            yield block
    finally:
        close = getattr(blocks, "close", None)
        if close is not None:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(close)
