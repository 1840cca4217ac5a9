"""Signs of life of the workers: whom they serve, how much room they have, how their clock goes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from jobs.clock import Clock
from jobs.records import View

_KEY = "pruning:workers"


class Worker(View):
    """One living worker process, as it last said."""

    name: str
    queues: tuple[str, ...]
    at: float
    disk_free_bytes: int
    clock_skew_seconds: float


def report(clock: Clock, name: str, queues: Iterable[str], work_dir: Path) -> None:
    """Say that this worker lives."""
    queues = list(queues)
    clock.alive(queues)
    free = 0
    with suppress(OSError):
        work_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(work_dir).free
    now = redis_time(clock)
    worker = Worker(
        name=name, queues=tuple(queues), at=now, disk_free_bytes=free, clock_skew_seconds=round(time.time() - now, 3)
    )
    clock.redis.hset(_KEY, name, worker.model_dump_json())


def living(clock: Clock) -> list[Worker]:
    """Return the workers that were heard of lately; forget the others."""
    seconds = max(clock.settings.lease_seconds, 3 * clock.settings.heartbeat_seconds)
    since, found = redis_time(clock) - seconds, []
    for name, text in cast(dict[str, str], clock.redis.hgetall(_KEY)).items():
        document: dict[str, Any] = json.loads(text)
        if document["at"] >= since:
            found.append(Worker.model_validate(document))
        elif document["at"] < since - 3600:
            clock.redis.hdel(_KEY, name)
    return found


def redis_time(clock: Clock) -> float:
    """Return what the clock of Redis says: the one that all processes share."""
    seconds, micros = clock.redis.time()
    return seconds + micros / 1e6
