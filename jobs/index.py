"""Lists in Redis, rebuilt from the bucket whenever they may be incomplete: each tenant's items, and all open ones.

Both are sorted sets with equal scores, so that Redis sorts by id, which is by time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from jobs import layout
from jobs.bucket import Bucket
from jobs.clock import Clock
from jobs.ids import KINDS, Kind, is_id, kind_of
from jobs.tenants import DEFAULT

_ALL = "pruning:index:"
_OPEN = "pruning:open:"
_SUMMARY = "pruning:summary"
_COMPLETE = "pruning:complete"
_FRESH = "pruning:scanned"
_SETTLING = "pruning:settling"


class Index:
    """Which items there are, and which of them have no outcome yet."""

    def __init__(self, bucket: Bucket, clock: Clock) -> None:
        self._bucket, self._clock = bucket, clock
        self._redis = clock.redis

    # -- upkeep ----------------------------------------------------------------------------------------------------

    def add(self, item: str, tenant: str = DEFAULT) -> None:
        """Note a new, open item."""
        with self._redis.pipeline() as pipe:
            pipe.zadd(_list(kind_of(item), tenant), {item: 0})
            pipe.zadd(_OPEN + kind_of(item), {item: 0})
            pipe.execute()

    def close(self, item: str) -> None:
        """Note that the item has its outcome."""
        self._redis.zrem(_OPEN + kind_of(item), item)

    def remove(self, item: str, tenant: str = DEFAULT) -> None:
        """Note that the item was deleted. Whoever cannot say whose it was leaves that list to the next who reads it."""
        with self._redis.pipeline() as pipe:
            pipe.zrem(_list(kind_of(item), tenant), item)
            pipe.zrem(_OPEN + kind_of(item), item)
            pipe.hdel(_SUMMARY, item)
            pipe.execute()

    def complete(self) -> bool:
        """Return whether the lists hold everything: they were built since Redis last was empty."""
        return bool(self._redis.exists(_COMPLETE))

    def settling(self) -> bool:
        """Return whether Redis came back a moment ago, and holders of lost leases should speak first."""
        return bool(self._redis.exists(_SETTLING))

    def refresh(self) -> bool:
        """Compare with the bucket if Redis was wiped or restarted, or the last comparison is long ago.

        Returns:
            Whether the bucket was read.
        """
        settings = self._clock.settings
        run_id = self._clock.run_id()
        known, fresh = self._redis.get(_COMPLETE), self._redis.exists(_FRESH)
        if known == run_id and fresh:
            return False
        if known != run_id:
            # Leases ran out or vanished while their holders live: give these two heartbeats to take them again.
            self._redis.set(_SETTLING, "1", px=int(2000 * settings.heartbeat_seconds + 500))
        with self._clock.lock("rebuild", seconds=60, wait=0) as mine:
            if not mine:
                return False
            self.rebuild()
            with self._redis.pipeline() as pipe:
                pipe.set(_COMPLETE, run_id)
                pipe.set(_FRESH, "1", px=int(settings.rescan_seconds * 1000))
                pipe.execute()
        return True

    def rebuild(self) -> None:
        """Read every key of the bucket once (keys only) and add what the lists lack; drop what has ended."""
        scanned = {kind: scan(self._bucket, kind) for kind in KINDS}
        # After the items: a marker is written first, so each item seen above has its own seen here.
        owners = dict(filter(None, map(layout.marked, self._bucket.list(layout.MARKERS))))
        for kind, (requested, ended, littered) in scanned.items():
            with self._redis.pipeline() as pipe:
                for item in requested:
                    pipe.zadd(_list(kind, owners.get(item, DEFAULT)), {item: 0})
                    if item not in ended:
                        pipe.zadd(_OPEN + kind, {item: 0})
                for item in ended - littered:
                    pipe.zrem(_OPEN + kind, item)
                for item in ended & littered:
                    # The reconciler looks at open items, and finds that this one is only to be tidied up.
                    pipe.zadd(_OPEN + kind, {item: 0})
                pipe.execute()

    # -- reading ---------------------------------------------------------------------------------------------------

    def open(self, kind: Kind, before: str | None = None, limit: int | None = None) -> list[str]:
        """Return the open items of a kind, oldest first, up to and without ``before``."""
        window: dict[str, int] = {} if limit is None else {"start": 0, "num": limit}
        end = "+" if before is None else f"({before}"
        return cast(list[str], self._redis.zrangebylex(_OPEN + kind, "-", end, **window))

    def opened(self, kind: Kind, items: Iterable[str]) -> set[str]:
        """Return those of the items that are open."""
        items = list(items)
        if not items:
            return set()
        scores = self._redis.zmscore(_OPEN + kind, items)
        return {item for item, score in zip(items, scores, strict=True) if score is not None}

    def open_in_bucket(self, kind: Kind) -> set[str]:
        """Return the open items of a kind from the bucket alone (slow: it lists every key)."""
        requested, ended, _ = scan(self._bucket, kind)
        return requested - ended

    def count_open(self, kind: Kind, before: str | None = None) -> int:
        """Return how many open items there are, older than ``before``."""
        return self._redis.zlexcount(_OPEN + kind, "-", "+" if before is None else f"({before}")

    def count_open_of(self, kind: Kind, tenant: str) -> int:
        """Return how many open items of a kind a tenant has."""
        return self._redis.zintercard(2, [_OPEN + kind, _list(kind, tenant)])

    def all(self, tenant: str) -> list[str]:
        """Return all items of a tenant, of every kind."""
        return [item for kind in KINDS for item in cast(list[str], self._redis.zrange(_list(kind, tenant), 0, -1))]

    def newest(self, kind: Kind, before: str | None, limit: int, tenant: str = DEFAULT) -> list[str]:
        """Return up to ``limit`` ids of a tenant, older than ``before``, newest first."""
        start = "+" if before is None else f"({before}"
        return cast(list[str], self._redis.zrevrangebylex(_list(kind, tenant), start, "-", start=0, num=limit))

    def summaries(self, items: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what filters need of items that have ended, as far as it was noted."""
        items = list(items)
        if not items:
            return {}
        found = cast(list[str | None], self._redis.hmget(_SUMMARY, items))
        return {item: json.loads(text) for item, text in zip(items, found, strict=True) if text is not None}

    def summarise(self, item: str, summary: dict[str, Any]) -> None:
        """Note what filters need of an item that has ended: ``state`` and ``labels``."""
        self._redis.hset(_SUMMARY, item, json.dumps(summary))


def _list(kind: Kind, tenant: str) -> str:
    return _ALL + kind + ("" if tenant == DEFAULT else f":{tenant}")


def scan(bucket: Bucket, kind: Kind) -> tuple[set[str], set[str], set[str]]:
    """Return the ids with a request, with an outcome, and with checkpoints, from one pass over the keys."""
    requested: set[str] = set()
    ended: set[str] = set()
    littered: set[str] = set()
    folder = layout.folder(kind)
    for key in bucket.list(folder):
        item, _, rest = key[len(folder) :].partition("/")
        if not is_id(kind, item):
            continue
        if rest == "request.json":
            requested.add(item)
        elif rest == "outcome.json":
            ended.add(item)
        elif rest.startswith("checkpoints/"):
            littered.add(item)
    return requested, ended, littered
