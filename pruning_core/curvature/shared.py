"""What a job has measured, computed once whoever asks."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from typing import Any, TypeVar

S = TypeVar("S")
R = TypeVar("R")


class Shared:
    """Statistics by what they depend on: several algorithms of one job, and several levels, share them.

    >>> def count():
    ...     yield "working"
    ...     return 42
    >>> shared = Shared()
    >>> list(shared.once("answer", count())), list(shared.once("answer", count()))
    (['working'], [])
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Generator[S, None, R]) -> Generator[S, None, R]:
        """Run a generator the first time its key is asked for, yielding its steps; return its value, then and later.

        Args:
            key: All that the value depends on beside network, data and seed of the job.
            make: Yields steps, returns the value; closed unused when the value is known.
        """
        if key in self._values:
            make.close()
        else:
            self._values[key] = yield from make
        value: R = self._values[key]
        return value
