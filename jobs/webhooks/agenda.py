"""When which delivery is due: in Redis, for each webhook by itself, so that a receiver that is away delays no other.

The bucket has all deliveries (`jobs.webhooks.outbox`); what is lost here is found there again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from datetime import datetime
from typing import cast

import redis

_BUSY = "pruning:webhooks:busy"
_DUE = "pruning:webhooks:due:"

# A webhook with nothing to do is forgotten in the same step that takes its last delivery away.
_DROP = """
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', KEYS[2], ARGV[2]) end
"""


class Agenda:
    """Names of deliveries (tenant, webhook, message), with the time at which each is due."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        self._drop = connection.register_script(_DROP)

    def add(self, names: Iterable[str]) -> None:
        """Note deliveries as due now, unless they are noted for another time already."""
        with self._redis.pipeline() as pipe:
            for name in names:
                pipe.zadd(_DUE + _whose(name), {name: 0}, nx=True)
                pipe.sadd(_BUSY, _whose(name))
            pipe.execute()

    def wait(self, name: str, until: datetime) -> None:
        """Note when a delivery is due."""
        with self._redis.pipeline() as pipe:
            pipe.zadd(_DUE + _whose(name), {name: until.timestamp()})
            pipe.sadd(_BUSY, _whose(name))
            pipe.execute()

    def drop(self, name: str) -> None:
        """Forget a delivery."""
        self._drop(keys=[_DUE + _whose(name), _BUSY], args=[name, _whose(name)])

    def due(self, each: int) -> list[str]:
        """Return names of deliveries that are due: of each webhook some, in a new order of webhooks each time."""
        busy = self._busy()
        random.shuffle(busy)
        with self._redis.pipeline(transaction=False) as pipe:
            for whose in busy:
                pipe.zrange(_DUE + whose, "-inf", str(time.time()), byscore=True, offset=0, num=each)
            return [name for names in cast(list[list[str]], pipe.execute()) for name in names]

    def pending(self) -> int:
        """Return how many deliveries are noted."""
        with self._redis.pipeline(transaction=False) as pipe:
            for whose in self._busy():
                pipe.zcard(_DUE + whose)
            return sum(cast(list[int], pipe.execute()))

    def _busy(self) -> list[str]:
        return list(cast(set[str], self._redis.smembers(_BUSY)))


def _whose(name: str) -> str:
    """Return tenant and webhook of a delivery's name."""
    return name.rpartition("/")[0]
