"""Doing something alone, or saying that it cannot be done now: for changes that two at once would spoil."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.clock import Clock, Down
from jobs.errors import Unavailable
from pruning_core.errors import PruningError


@contextmanager
def alone(
    clock: Clock, name: str, *, busy: PruningError, down: str, wait: float, seconds: float = 30.0
) -> Iterator[None]:
    """Hold a lock of Redis around the block.

    Args:
        clock: Has the lock.
        name: What is locked.
        busy: Raised when another holds it for longer than ``wait``.
        down: What to say when Redis does not answer.
        wait: Seconds to wait for another holder.
        seconds: After which it opens by itself, should this process die.

    Raises:
        Unavailable: Redis does not answer, for the lock or inside the block.
        PruningError: The one given as ``busy``.
    """
    try:
        with clock.lock(name, seconds=seconds, wait=wait) as locked:
            if not locked:
                raise busy
            yield
    except Down as error:
        raise Unavailable(down, advice="Try again in a moment.") from error
