"""The clock: what moves, in Redis. Leases, locks, progress, hints, signs of life.

Nothing here is a promise to a user: every key may vanish at any moment, and every method works on an empty Redis.
When Redis does not answer, methods raise `Down`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.ids import new_ulid
from jobs.metrics import Metrics
from jobs.settings import Settings
from pruning_core.report import Progress

#: Redis is not reachable, is loading, or refuses to write.
Down = redis.RedisError

_KEY = "pruning:"

# A holder whose lease vanished (Redis was wiped, or the holder slept) takes it again unless somebody else has it.
# 0: lost; 1: held; 2: held, and a cancel flag is up.
_RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif holder then return 0
else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1 + redis.call('EXISTS', KEYS[2])
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Clock:
    """The Redis side. Safe to share between threads; not across a fork."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis: redis.Redis = redis.Redis.from_url(
            settings.redis_url,
            decode_responses=True,
            socket_timeout=settings.redis_timeout,
            socket_connect_timeout=settings.redis_timeout,
            # One retry: a pooled connection may be stale after a restart of Redis.
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[redis.ConnectionError],
        )
        self.metrics = Metrics(self.redis)
        self._renew = self.redis.register_script(_RENEW)
        self._release = self.redis.register_script(_RELEASE)
        self._lease_ms = int(settings.lease_seconds * 1000)
        self._left: dict[str, str] = {}

    def run_id(self) -> str:
        """Return what changes when the Redis server restarts."""
        return str(self.redis.info("server").get("run_id", "unknown"))

    # -- lease -----------------------------------------------------------------------------------------------------

    def claim(self, item: str) -> str | None:
        """Take the lease of an item nobody holds.

        Returns:
            The fencing token, or None if somebody holds it.
        """
        token = new_ulid().lower()
        return token if self.redis.set(f"{_KEY}lease:{item}", token, nx=True, px=self._lease_ms) else None

    def renew(self, item: str, token: str) -> Literal["held", "cancelling", "lost"]:
        """Prolong the lease, or take it again if it vanished and nobody else took it.

        Returns:
            ``lost`` if another token holds it; ``cancelling`` if it is held and the user wants the item cancelled.
        """
        answer = self._renew(keys=[f"{_KEY}lease:{item}", f"{_KEY}cancel:{item}"], args=[token, self._lease_ms])
        answers: tuple[Literal["lost", "held", "cancelling"], ...] = ("lost", "held", "cancelling")
        return answers[cast(int, answer)]

    def release(self, item: str, token: str) -> None:
        """Give the lease up, if it is still this token's."""
        self._release(keys=[f"{_KEY}lease:{item}"], args=[token])

    def leased(self, items: Iterable[str]) -> set[str]:
        """Return those of the items that somebody holds."""
        items = list(items)
        held: set[str] = set()
        for start in range(0, len(items), 1000):
            some = items[start : start + 1000]
            values = cast(list[str | None], self.redis.mget([f"{_KEY}lease:{item}" for item in some]))
            held.update(item for item, value in zip(some, values, strict=True) if value is not None)
        return held

    def flag_cancel(self, item: str) -> None:
        """Tell the holder, if there is one, at its next heartbeat. The bucket has the promise; this is only faster."""
        self.redis.set(f"{_KEY}cancel:{item}", "1", px=10 * self._lease_ms)

    @contextmanager
    def lock(self, name: str, *, seconds: float = 30.0, wait: float = 30.0) -> Iterator[bool]:
        """Hold a named lock; yields whether it was had within ``wait`` seconds.

        Args:
            name: What is locked.
            seconds: After which it opens by itself, should this process die.
            wait: How long to wait for another holder; 0: try once.
        """
        self._open_left()
        key, token, deadline = f"{_KEY}lock:{name}", new_ulid(), time.monotonic() + wait
        while not (held := bool(self.redis.set(key, token, nx=True, px=int(seconds * 1000)))):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        try:
            yield held
        finally:
            if held:
                self._left[key] = token
                with suppress(Down):
                    self._open_left()

    def _open_left(self) -> None:
        """Open the locks that are not needed any more, those too for which Redis did not answer before."""
        for key, token in list(self._left.items()):
            self._release(keys=[key], args=[token])
            self._left.pop(key, None)

    # -- progress --------------------------------------------------------------------------------------------------

    def report(self, item: str, progress: Progress, *, started: float) -> None:
        """Publish how far an item is.

        Args:
            item: The item.
            progress: The last step.
            started: Unix time at which the attempt began; the estimate of the end is made from it.
        """
        key = f"{_KEY}progress:{item}"
        with self.redis.pipeline() as pipe:
            pipe.hset(key, mapping={"stage": progress.stage, "fraction": progress.fraction, "started": started})
            pipe.expire(key, 3600)
            pipe.execute()

    def progress(self, item: str) -> dict[str, str]:
        """Return ``stage``, ``fraction`` and ``started``, or an empty mapping."""
        return cast(dict[str, str], self.redis.hgetall(f"{_KEY}progress:{item}"))

    def progresses(self, items: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return what `progress` returns, for many items at once."""
        items = list(items)
        with self.redis.pipeline(transaction=False) as pipe:
            for item in items:
                pipe.hgetall(f"{_KEY}progress:{item}")
            return dict(zip(items, cast(list[dict[str, str]], pipe.execute()), strict=True))

    def forget(self, item: str) -> None:
        """Drop all that moves of an item that has ended, except its lease."""
        self.redis.delete(*(f"{_KEY}{what}:{item}" for what in ("progress", "hint", "cancel")))

    def mark_deleted(self, item: str, *, seconds: float) -> None:
        """Tell every process, for so long, that what it keeps of this item is void."""
        self.redis.set(f"{_KEY}deleted:{item}", "1", px=int(1000 * seconds))

    def deleted(self, item: str) -> bool:
        """Return whether the item was deleted a short while ago."""
        return bool(self.redis.exists(f"{_KEY}deleted:{item}"))

    def note_ended(self, item: str) -> None:
        """Note that an item has its outcome, for whoever is to tell others."""
        self.redis.sadd(f"{_KEY}ended", item)

    def ended(self) -> set[str]:
        """Return the items that have ended and that nobody was told of yet, as far as Redis knows."""
        return cast(set[str], self.redis.smembers(f"{_KEY}ended"))

    def told(self, item: str) -> None:
        """Take such a note back."""
        self.redis.srem(f"{_KEY}ended", item)

    # -- hints and signs of life -----------------------------------------------------------------------------------

    def hint(self, item: str) -> bool:
        """Note that a message for this item is being sent; False if one was sent a moment ago."""
        return bool(self.redis.set(f"{_KEY}hint:{item}", "1", nx=True, px=self._lease_ms))

    def unhint(self, item: str) -> None:
        """Take the note back: the message could not be sent, or was used up."""
        self.redis.delete(f"{_KEY}hint:{item}")

    def alive(self, queues: Iterable[str]) -> None:
        """Show that a worker serves these queues."""
        milliseconds = int(max(self.settings.lease_seconds, 3 * self.settings.heartbeat_seconds) * 1000)
        for queue in queues:
            self.redis.set(f"{_KEY}alive:{queue}", "1", px=milliseconds)

    def living(self, queue: str) -> bool:
        """Return whether some worker serves this queue."""
        return bool(self.redis.exists(f"{_KEY}alive:{queue}"))
