"""What a tenant uses, counted from the bucket; Redis and this process only remember what never changes.

Pruning seconds and jobs of a day are counted by the names of small objects, which stay when a job is deleted: one
listing adds them up, and writing one twice changes nothing. So a crash, or an attempt that publishes again, is not
counted twice. Stored bytes are added up over the items there are: an item's size is read once, and never changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

from jobs import layout
from jobs.bucket import Bucket
from jobs.clock import Clock, Down
from jobs.ids import KINDS, Kind, is_id, kind_of
from jobs.index import Index
from jobs.records import Attempt
from jobs.settings import Settings
from jobs.tenants import DEFAULT

_SIZES = "pruning:sizes:"
#: How long the sum of a month's seconds is trusted; it grows only when a job ends.
_SECONDS_TRUSTED = 10.0


class Usage:
    """Counts, for every tenant. Safe to share between threads."""

    def __init__(self, settings: Settings, bucket: Bucket, clock: Clock, index: Index, threads: Executor) -> None:
        self._settings, self._bucket, self._clock, self._index = settings, bucket, clock, index
        self._threads = threads
        self._months: dict[str, tuple[float, float]] = {}

    # -- writing ---------------------------------------------------------------------------------------------------

    def begin(self, tenant: str, job: str) -> None:
        """Note that a job is made today."""
        self._bucket.put_json(layout.usage(tenant, "jobs", _today()) + job, {})

    # -- counting --------------------------------------------------------------------------------------------------

    def jobs_today(self, tenant: str) -> int:
        """Return how many jobs were made since midnight (UTC), also of those that were deleted since."""
        return sum(1 for _ in self._bucket.list(layout.usage(tenant, "jobs", _today())))

    def pruning_seconds(self, tenant: str) -> float:
        """Return for how long workers were at jobs of this tenant that ended in this calendar month (UTC)."""
        folder = layout.usage(tenant, "seconds", _today()[:7])
        until, known = self._months.get(folder, (0.0, 0.0))
        if time.monotonic() < until:
            return known
        by_job: dict[str, int] = {}
        for key in self._bucket.list(folder):
            job, _, milliseconds = key.removeprefix(folder).rpartition("-")
            if milliseconds.isdecimal():
                by_job[job] = max(by_job.get(job, 0), int(milliseconds))
        total = sum(by_job.values()) / 1000
        self._months[folder] = (time.monotonic() + _SECONDS_TRUSTED, total)
        return total

    def open_jobs(self, tenant: str) -> int:
        """Return how many jobs have no outcome yet."""
        try:
            if self._index.complete():
                return self._index.count_open_of("job", tenant)
        except Down:
            pass
        return len(self._index.open_in_bucket("job") & set(self._ids(tenant, ("job",))))

    def stored_bytes(self, tenant: str) -> int:
        """Return the bytes of all uploads and results; each upload counts, also where two share their bytes."""
        try:
            ids = self._index.all(tenant) if self._index.complete() else self._ids(tenant)
            done = set(ids) - self._index.opened("job", [item for item in ids if kind_of(item) == "job"])
            sizes = self._noted(tenant, done)
        except Down:
            done, sizes = set(self._ids(tenant)), {}
        missing = [item for item in done if item not in sizes]
        read = {
            item: size
            for item, size in zip(missing, self._threads.map(self._size, missing), strict=True)
            if size is not None
        }
        if read:
            with suppress(Down):
                self._clock.redis.hset(_SIZES + tenant, mapping={item: str(size) for item, size in read.items()})
        return sum(sizes.values()) + sum(read.values())

    def _noted(self, tenant: str, items: Iterable[str]) -> dict[str, int]:
        items = list(items)
        if not items:
            return {}
        found = cast(list[str | None], self._clock.redis.hmget(_SIZES + tenant, items))
        return {item: int(text) for item, text in zip(items, found, strict=True) if text is not None}

    def _size(self, item: str) -> int | None:
        """Return the bytes of an item; None while they are not known for good."""
        if kind_of(item) != "job":
            request = self._bucket.get_json(layout.request(item))
            return None if request is None else int(request["size"])
        outcome = self._bucket.get_json(layout.outcome(item))
        return None if outcome is None else _bytes(outcome.get("artifacts"))

    def _ids(self, tenant: str, kinds: tuple[Kind, ...] = KINDS) -> list[str]:
        """Return a tenant's items from the bucket alone."""
        if tenant != DEFAULT:
            folders = {kind: layout.markers(tenant, kind) for kind in kinds}
            names = [key.removeprefix(folder) for folder in folders.values() for key in self._bucket.list(folder)]
            return [name for name in names if any(is_id(kind, name) for kind in kinds)]
        marked = {found[0] for key in self._bucket.list(layout.MARKERS) if (found := layout.marked(key))}
        names = [name for kind in kinds for name in self._bucket.children(layout.folder(kind)) if is_id(kind, name)]
        return [name for name in names if name not in marked]


def charge(
    bucket: Bucket,
    settings: Settings,
    tenant: str,
    job: str,
    attempts: Iterable[Attempt],
    *,
    current: Attempt | None,
    now: str,
) -> None:
    """Write down how long workers were at a job, just before its outcome: a crash between leads to the same again.

    An attempt counts from its beginning to its known end, the current one to now. What was lost with a worker that
    vanished does not count. The default tenant is charged only where the settings limit it.
    """
    if tenant == DEFAULT and settings.quota_pruning_seconds_per_month is None:
        return
    seconds = 0.0
    for attempt in attempts:
        is_current = current is not None and attempt.number == current.number
        end = datetime.fromisoformat(now) if is_current else attempt.ended_at
        if end is not None:
            seconds += max((end - attempt.started_at).total_seconds(), 0.0)
    bucket.put_json(f"{layout.usage(tenant, 'seconds', now[:7])}{job}-{round(seconds * 1000)}", {})


def _bytes(artifacts: Any) -> int:
    if isinstance(artifacts, dict):
        own = artifacts.get("size")
        return own if isinstance(own, int) else sum(map(_bytes, artifacts.values()))
    return sum(map(_bytes, artifacts)) if isinstance(artifacts, list) else 0


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
