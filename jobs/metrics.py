"""What is counted, over all processes: buffered in each, added up in Redis, shown by ``GET /metrics``.

A pool child lives for a while only, and there are several workers and front ends; in Redis their counts become one
series each. A wipe begins them again at zero, which Prometheus takes for what it is. No label has an id, a tenant or
anything else that a user or a pruning process could invent without end.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import redis

from pruning_core.errors import PROBLEM_TYPE, PruningError

_KEY = "pruning:metrics"
_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0)
_BYTES = tuple(float(2**n) for n in range(26, 39))
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0)

#: What the supervisor and the pruning process call the parts of their work; anything else is counted as "other".
STAGES = frozenset(
    (
        *("fetch", "start", "read", "inputs", "targets", "gradients", "select", "refine", "evaluate", "write"),
        *("verify", "measure", "store", "publish"),
    )
)
OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One family: a counter, or with buckets a histogram."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="pruning_items_ended_total", help="Items that got their outcome.", labels=("kind", "state")),
        Metric(name="pruning_failures_total", help="Items that failed, by problem.", labels=("kind", "problem")),
        Metric(name="pruning_attempts_total", help="Items taken up, by how it went.", labels=("queue", "result")),
        Metric(name="pruning_lease_losses_total", help="Leases that another worker took over.", labels=("kind",)),
        Metric(name="pruning_stage_seconds", help="Duration of a stage.", labels=("stage",), buckets=_SECONDS),
        Metric(name="pruning_job_seconds", help="From creation to outcome.", labels=("state",), buckets=_SECONDS),
        Metric(name="pruning_job_wait_seconds", help="From creation to the first attempt.", buckets=_SECONDS),
        Metric(name="pruning_worker_bytes_total", help="Between worker and bucket.", labels=("direction",)),
        Metric(
            name="pruning_sandbox_memory_peak_bytes",
            help="Most resident memory of a sandboxed task.",
            labels=("task",),
            buckets=_BYTES,
        ),
        Metric(name="pruning_reconciler_ticks_total", help="Rounds of the reconciler.", labels=("result",)),
        Metric(name="pruning_requeued_total", help="Items that nobody had and that were sent again.", labels=("kind",)),
        Metric(name="pruning_webhook_attempts_total", help="Attempts to deliver a webhook.", labels=("result",)),
        Metric(name="pruning_http_requests_total", help="Requests.", labels=("method", "route", "status")),
        Metric(
            name="pruning_http_request_seconds",
            help="Duration of a request, up to the last byte of the answer.",
            labels=("method", "route"),
            buckets=_HTTP,
        ),
        Metric(name="pruning_http_bytes_total", help="Bytes of bodies.", labels=("direction",)),
    )
}


@dataclass
class Series:
    """What one combination of labels has added up to; ``buckets`` counts by upper bound, not cumulative."""

    value: float = 0.0
    buckets: dict[str, float] = field(default_factory=dict)


class Metrics:
    """Counts. Never raises for want of Redis: what cannot be written is kept until it can. Safe between threads."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        self._guard = threading.Lock()
        self._buffer: Counter[str] = Counter()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._note(METRICS[name], labels, {"": amount})

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        metric = METRICS[name]
        place = bisect_left(metric.buckets, value)
        bound = repr(metric.buckets[place]) if place < len(metric.buckets) else "+Inf"
        self._note(metric, labels, {bound: 1, "sum": value})

    def _note(self, metric: Metric, labels: Mapping[str, str], amounts: Mapping[str, float]) -> None:
        values = tuple(labels[label] for label in metric.labels)
        with self._guard:
            for part, amount in amounts.items():
                self._buffer[_key(metric.name, part, values)] += amount  # type: ignore[assignment]

    def flush(self) -> None:
        """Add to Redis what has come together here."""
        with self._guard:
            buffer, self._buffer = self._buffer, Counter()
        if not buffer:
            return
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                for name, amount in buffer.items():
                    pipe.hincrbyfloat(_KEY, name, amount)
                pipe.execute()
        except redis.RedisError:
            with self._guard:
                self._buffer.update(buffer)

    def read(self) -> dict[str, dict[tuple[str, ...], Series]]:
        """Return all series by metric and label values.

        Raises:
            Down: Redis does not answer.
        """
        found: dict[str, dict[tuple[str, ...], Series]] = {name: {} for name in METRICS}
        for key, text in cast(dict[str, str], self._redis.hgetall(_KEY)).items():
            name, part, *values = json.loads(key)
            metric = METRICS.get(name)
            if metric is None or len(values) != len(metric.labels):
                continue  # of another version
            series = found[name].setdefault(tuple(values), Series())
            if part in ("", "sum"):
                series.value += float(text)
            else:
                series.buckets[part] = float(text)
        return found


@lru_cache(4096)
def _key(name: str, part: str, values: tuple[str, ...]) -> str:
    return json.dumps([name, part, *values])


def problem_kind(problem: Mapping[str, Any] | None) -> str:
    """Return the last part of a problem's type, if it is one of ours.

    >>> problem_kind({"type": "urn:pruning-service:problem:limit-exceeded"}), problem_kind({"type": "x"})
    ('limit-exceeded', 'other')
    """
    slug = str((problem or {}).get("type", "")).removeprefix(PROBLEM_TYPE)
    return slug if slug in _slugs(PruningError) else OTHER


def stage_name(stage: str) -> str:
    """Return the stage, if it is one of ours: the pruning process is not to be trusted with labels."""
    return stage if stage in STAGES else OTHER


def _slugs(error: type[PruningError]) -> set[str]:
    found = {error.slug}
    for child in error.__subclasses__():
        with suppress(RecursionError):
            found |= _slugs(child)
    return found
