"""Rate limits: token buckets in Redis, shared by all api processes; while Redis is down, each process has its own.

A bucket holds ``burst`` tokens and is filled at ``per_second``; a call takes one, or is refused.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

_KEY = "pruning:rate:"
_REMEMBERED = 10_000
#: For so long after a failure Redis is not asked: each call would wait for it.
_REST_SECONDS = 2.0

# The time is Redis' own: the clocks of several machines do not matter. Returns thousandths of tokens before the call.
_TAKE = """
local rate, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local known = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(known[1]) or burst, tonumber(known[2]) or now
tokens = math.min(burst, tokens + math.max(now - at, 0) * rate)
local left = tokens
if tokens >= 1 then left = tokens - cost end
redis.call('HSET', KEYS[1], 'tokens', left, 'at', now)
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * burst / rate) + 1000)
return math.floor(1000 * tokens)
"""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a bucket holds, and how fast it is filled."""

    per_second: float
    burst: int


@dataclass(frozen=True)
class Verdict:
    """What became of a call."""

    tokens: float  # before it
    rate: Rate

    @property
    def allowed(self) -> bool:
        """Whether there was a token for it."""
        return self.tokens >= 1

    @property
    def retry_after(self) -> int:
        """Seconds until there is one."""
        return max(1, math.ceil((1 - self.tokens) / self.rate.per_second))

    def headers(self) -> dict[str, str]:
        """Return what the client is told, as draft-ietf-httpapi-ratelimit-headers has it."""
        left = max(math.floor(self.tokens) - 1, 0)
        full = math.ceil(self.rate.burst / self.rate.per_second)
        again = math.ceil((self.rate.burst - left) / self.rate.per_second)
        return {
            "RateLimit-Policy": f'"key";q={self.rate.burst};w={full}',
            "RateLimit": f'"key";r={left};t={again}',
        }


class Rates:
    """All buckets. For one event loop."""

    def __init__(self, url: str, timeout: float) -> None:
        self._redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
        )
        self._take = self._redis.register_script(_TAKE)
        self._rests_until = 0.0
        self._here: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def take(self, name: str, rate: Rate, *, cost: int = 1) -> Verdict:
        """Take a token, if there is one; with a ``cost`` of 0 only look."""
        if time.monotonic() >= self._rests_until:
            try:
                found = await self._take(keys=[_KEY + name], args=[rate.per_second, rate.burst, cost])
                return Verdict(cast(int, found) / 1000, rate)
            except (RedisError, OSError):
                self._rests_until = time.monotonic() + _REST_SECONDS
        return Verdict(self._take_here(name, rate, cost), rate)

    def _take_here(self, name: str, rate: Rate, cost: int) -> float:
        now = time.monotonic()
        tokens, at = self._here.pop(name, (float(rate.burst), now))
        tokens = min(rate.burst, tokens + (now - at) * rate.per_second)
        self._here[name] = (tokens - cost if tokens >= 1 else tokens, now)
        if len(self._here) > _REMEMBERED:
            self._here.popitem(last=False)
        return tokens

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


def peer_name(host: str | None) -> str:
    """Return whom failures of this address are counted against: of IPv6, the network of one customer.

    >>> peer_name("2001:db8:1:2:3::4"), peer_name("::ffff:10.0.0.1"), peer_name("10.0.0.1")
    ('2001:db8:1:2::', '10.0.0.1', '10.0.0.1')
    """
    try:
        address = ip_address((host or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)
