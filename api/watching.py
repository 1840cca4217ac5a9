"""One watcher per process: however many clients wait for jobs, the looking costs one small call to Redis per tick.

What a client is told comes from the bucket's record. Redis only says when it is worth reading: the job is no longer
among the open ones, or its lease came or went. Without Redis, or after it was wiped, the bucket is read every few
seconds instead. No client holds a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import anyio
from anyio import to_thread

from jobs.clock import Clock, Down
from jobs.errors import Unavailable
from jobs.index import Index
from jobs.records import JobView
from jobs.states import ENDED
from jobs.views import moving

log = logging.getLogger("api")

_TICK_SECONDS = 0.25
#: Reads of the bucket: while something seems to have happened, at most so far apart,
_EAGER_SECONDS = 5.0
#: without Redis,
_BLIND_SECONDS = 2.0
#: and when all is as it was.
_CALM_SECONDS = 15.0
_READS_PER_TICK = 64
_READERS = 8


class Streams:
    """How many clients wait, over all and by tenant."""

    def __init__(self, most: int, most_per_tenant: int) -> None:
        self._most, self._most_per_tenant = most, most_per_tenant
        self._by_tenant: Counter[str] = Counter()

    def room(self, tenant: str) -> bool:
        """Return whether one more of this tenant may wait."""
        return self._by_tenant.total() < self._most and self._by_tenant[tenant] < self._most_per_tenant

    @contextmanager
    def taken(self, tenant: str) -> Iterator[None]:
        """Count one more inside the block."""
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]


Signs = dict[str, tuple[bool, bool, dict[str, str]]]


@dataclass(eq=False)
class Watched:
    """A job that somebody waits for, as it was last seen."""

    view: JobView
    read: Callable[[], JobView | None]
    gone: bool = False
    version: int = 0
    watchers: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _signs: tuple[bool, bool] | None = None
    _read_at: float = field(default_factory=time.monotonic)
    _pause: float = 0.0

    @property
    def over(self) -> bool:
        """Whether nothing more will happen: it has ended, or was deleted."""
        return self.gone or self.view.state in ENDED

    async def newer(self, version: int, seconds: float) -> bool:
        """Wait until there is something newer than this version; return whether there is."""
        with anyio.move_on_after(seconds):
            while self.version == version:
                await self._changed.wait()
        return self.version != version

    def due(self, signs: tuple[bool, bool] | None, now: float) -> bool:
        """Return whether the bucket should be read, given what Redis says: the job is open, and leased."""
        if signs != self._signs:
            self._signs, self._pause = signs, 0.0
        if signs is None:
            wait = _BLIND_SECONDS
        else:
            is_open, leased = signs
            calm = is_open and leased == (self.view.state == "running")
            wait = _CALM_SECONDS if calm else self._pause
        return not self.over and now - self._read_at >= wait

    def take(self, view: JobView | None) -> None:
        """Note what was read."""
        self._read_at = time.monotonic()
        self._pause = min(max(2 * self._pause, _TICK_SECONDS), _EAGER_SECONDS)
        if view is None:
            self.gone = True
            self.wake()
        else:
            self.show(view)

    def show(self, view: JobView) -> None:
        """Show this from now on."""
        known, self.view = self.view, view
        if any(getattr(known, name) != getattr(view, name) for name in ("state", "attempts", "stage", "progress")):
            self.wake()

    def wake(self) -> None:
        """Tell everybody that something is new."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()


class Watcher:
    """Looks at all watched jobs, for as long as `run` runs."""

    def __init__(self, clock: Clock, index: Index) -> None:
        self._clock, self._index = clock, index
        self._jobs: dict[str, Watched] = {}
        self._wanted = asyncio.Event()
        self._threads = anyio.CapacityLimiter(_READERS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.leaving = False

    def leave(self) -> None:
        """End all waiting: the server stops. Clients come back to the next one. May be called by a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self.leaving = True
        for watched in self._jobs.values():
            watched.wake()

    @asynccontextmanager
    async def watching(self, view: JobView, read: Callable[[], JobView | None]) -> AsyncIterator[Watched]:
        """Watch a job inside the block.

        Args:
            view: As it was read a moment ago.
            read: Reads it again; runs in a thread.
        """
        watched = self._jobs.setdefault(view.id, Watched(view, read))
        if view.state in ENDED:
            watched.show(view)
        watched.watchers += 1
        self._wanted.set()
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if watched.watchers == 0:
                del self._jobs[view.id]

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            if not self._jobs:
                self._wanted.clear()
                await self._wanted.wait()
            started = time.monotonic()
            try:
                await self._tick()
            except Exception:
                # A defect here must not leave every client waiting for ever.
                log.exception("watching failed; it goes on")
            await asyncio.sleep(max(_TICK_SECONDS, 2 * (time.monotonic() - started)))

    async def _tick(self) -> None:
        jobs = [job for job, watched in self._jobs.items() if not watched.over]
        signs: Signs | None = None
        with suppress(Down):
            signs = await to_thread.run_sync(self._look, jobs, limiter=self._threads)
        now, due = time.monotonic(), []
        for job in jobs:
            watched = self._jobs.get(job)
            if watched is None:
                continue
            if watched.due(None if signs is None else signs[job][:2], now):
                due.append(watched)
            elif signs is not None and watched.view.state == "running" and (news := moving(signs[job][2])):
                watched.show(watched.view.model_copy(update=news))
        async with anyio.create_task_group() as tasks:
            for watched in due[:_READS_PER_TICK]:
                tasks.start_soon(self._read, watched)

    async def _read(self, watched: Watched) -> None:
        try:
            watched.take(await to_thread.run_sync(watched.read, limiter=self._threads))
        except Unavailable:
            watched.take(watched.view)  # again after the pause

    def _look(self, jobs: Iterable[str]) -> Signs:
        jobs = list(jobs)
        is_open, leased = self._index.opened("job", jobs), self._clock.leased(jobs)
        progress = self._clock.progresses(leased)
        return {job: (job in is_open, job in leased, progress.get(job, {})) for job in jobs}
