"""Whether the service can do its work, and if not, what is missing and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from jobs import workers
from jobs.bucket import Bucket
from jobs.clock import Clock, Down
from jobs.errors import Unavailable
from jobs.ids import KINDS, milliseconds
from jobs.index import Index
from jobs.queue import QUEUES, QueueName, queue_of
from jobs.settings import Settings

#: Signatures of requests to the bucket, and of webhooks, are refused where clocks differ by minutes.
_MOST_SKEW_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that is needed."""

    name: str
    ready: bool
    detail: str
    advice: str | None = None


@dataclass(frozen=True, kw_only=True)
class Load:
    """How one queue stands."""

    queue: QueueName
    waiting: int
    running: int
    oldest_at: float | None  # Unix seconds
    workers: int
    disk_free_bytes: int | None


def parts(settings: Settings, bucket: Bucket, clock: Clock) -> Iterator[Part]:
    """Ask every part. What is behind Redis is not known without it, and counts as not ready."""
    try:
        bucket.check()
        yield Part(name="bucket", ready=True, detail="It answers.")
    except Unavailable as error:
        yield Part(
            name="bucket",
            ready=False,
            detail=error.detail,
            advice="Start the S3 server, or see PRUNING_S3_ENDPOINT and the keys. Nothing is accepted until then.",
        )
    try:
        alive, skew = workers.living(clock), time.time() - workers.redis_time(clock)
        served = {queue: clock.living(queue) for queue in QUEUES}
    except Down:
        yield Part(
            name="redis",
            ready=False,
            detail="It does not answer.",
            advice="Start Redis, or see PRUNING_REDIS_URL. Jobs are accepted and kept; they run when it is back.",
        )
        return
    yield Part(name="redis", ready=True, detail="It answers.")
    for queue in QUEUES:
        mine = [worker for worker in alive if queue in worker.queues]
        yield _worker(queue, served[queue])
        if mine:
            yield _disk(queue, max(worker.disk_free_bytes for worker in mine), settings.min_free_bytes)
    most = max([abs(skew), *(abs(worker.clock_skew_seconds) for worker in alive)])
    yield Part(
        name="clocks",
        ready=most <= _MOST_SKEW_SECONDS,
        detail=f"They differ by {most:.1f} seconds at most.",
        advice=None if most <= _MOST_SKEW_SECONDS else "Run NTP on the machines of api, workers and Redis.",
    )


def loads(clock: Clock, index: Index) -> list[Load]:
    """Return how the queues stand.

    Raises:
        Down: Redis does not answer.
    """
    alive = workers.living(clock)
    return [_load(clock, index, queue, [w for w in alive if queue in w.queues]) for queue in QUEUES]


def _load(clock: Clock, index: Index, queue: QueueName, mine: list[workers.Worker]) -> Load:
    items = [item for kind in KINDS if queue_of(kind) == queue for item in index.open(kind)]
    held = clock.leased(items)
    waiting = [milliseconds(item) / 1000 for item in items if item not in held]
    return Load(
        queue=queue,
        waiting=len(waiting),
        running=len(held),
        oldest_at=min(waiting, default=None),
        workers=len(mine),
        disk_free_bytes=min((worker.disk_free_bytes for worker in mine), default=None),
    )


def _worker(queue: QueueName, served: bool) -> Part:
    part = partial(Part, name=f"worker:{queue}", ready=served)
    if served:
        return part(detail="A worker serves the queue.")
    return part(
        detail=f"No worker serves the queue {queue!r}.",
        advice=f"Start one: celery -A worker.app worker -Q {queue}. What is sent meanwhile is kept.",
    )


def _disk(queue: QueueName, free: int, wanted: int) -> Part:
    part = partial(Part, name=f"disk:{queue}", ready=free >= wanted, detail=f"{free:,} bytes are free.")
    if free >= wanted:
        return part()
    return part(advice=f"Make room in PRUNING_WORK_DIR of the workers: {wanted:,} bytes (PRUNING_MIN_FREE_BYTES).")
