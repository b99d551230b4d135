"""Sliding window counters in Redis, on Redis' own clock."""

import math
import time
from collections import OrderedDict
from ipaddress import IPv6Network
from typing import NamedTuple

from hw_server.errors import RateLimited, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.redis import CacheRedis, Keys
from hw_server.redis.batcher import Batcher
from hw_server.redis.client import DedicatedConnection, Script
from hw_server.settings import RateLimitSettings

WINDOW = 60  # seconds

# Per key two counters, of this window and the one before; the older one counts for the part of it that the sliding
# window still covers. Returns for each key: allowed, remaining, milliseconds until there is room or the window ends.
SLIDING_WINDOW = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local size = tonumber(ARGV[1])
local index = math.floor(now / size)
local into = now - index * size
local results = {}
for i, key in ipairs(KEYS) do
  local limit, cost = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local state = redis.call('HMGET', key, 'i', 'c', 'p')
  local at, current, previous = tonumber(state[1]), tonumber(state[2]) or 0, tonumber(state[3]) or 0
  if at ~= index then
    if at == index - 1 then previous = current else previous = 0 end
    current = 0
  end
  local used = current + previous * (size - into) / size
  local wait = size - into
  if used + cost <= limit then
    current = current + cost
    redis.call('HSET', key, 'i', index, 'c', current, 'p', previous)
    redis.call('PEXPIRE', key, size * 2)
    results[#results + 1] = 1
    results[#results + 1] = math.floor(limit - used - cost)
  else
    if current + cost <= limit and previous > 0 then
      wait = size - into - (limit - current - cost) * size / previous
    end
    results[#results + 1] = 0
    results[#results + 1] = 0
  end
  results[#results + 1] = math.max(1, math.ceil(wait))
end
return results
""")


def client_key(address: str | None) -> str:
    """The key under which an address is counted: for IPv6 its /64, as one host may use all addresses of it (RFC 6177)."""
    if address is None or ":" not in address:
        return str(address)
    return str(IPv6Network((address.partition("%")[0], 64), strict=False))


class Decision(NamedTuple):
    """`reset` is in whole seconds: when the window ends, or for a refusal when there is room again."""

    allowed: bool
    limit: int
    remaining: int
    reset: int


class RateLimiter:
    """Limits by scope (`http`, `ws`, `handshake`, `publish`) and caller. Without Redis a local window counts, or every request is
    refused, as `ratelimit.on_redis_down` says."""

    def __init__(self, settings: RateLimitSettings, redis: CacheRedis, keys: Keys, metrics: Metrics) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = keys
        self._limits = {
            "http": settings.http_per_minute,
            "ws": settings.ws_per_minute,
            "publish": settings.publishes_per_minute,
            "handshake": settings.handshakes_per_minute,
        }
        self._hits = metrics.rate_limit_hits
        self._fallback = metrics.rate_limit_fallback
        self._local = LocalWindows()
        failures = metrics.service_failures.labels("ratelimit")
        self._decisions = Batcher[tuple[str, int, int], Decision](redis, "ratelimit", self._evaluate, failures)

    async def check(self, scope: str, who: str, cost: int = 1) -> Decision:
        """Counts a request of `who`, which may count as several. Raises `RateLimited`, or `Unavailable` without Redis where
        `ratelimit.on_redis_down` is `closed`."""
        limit = self._limits[scope]
        cost = min(cost, limit)  # else it would never be allowed
        if self._redis.circuit_open:
            decision = self._without_redis(scope, who, limit, cost)
        else:
            try:
                decision = await self._decisions.add((self._keys.rate(scope, who), limit, cost))
            except Unavailable:
                decision = self._without_redis(scope, who, limit, cost)
        if not decision.allowed:
            self._hits.labels(scope).inc()
            raise RateLimited(decision.reset)
        return decision

    def _without_redis(self, scope: str, who: str, limit: int, cost: int) -> Decision:
        if self._settings.on_redis_down == "closed":
            raise Unavailable("rate limits cannot be checked")
        self._fallback.labels(scope).inc()
        return self._local.check(f"{scope}:{who}", limit, cost)

    @staticmethod
    async def _evaluate(connection: DedicatedConnection, items: list[tuple[str, int, int]]) -> list[Decision]:
        keys = [key for key, *_ in items]
        limits = [limit for _, limit, _ in items]
        numbers = [number for _, limit, cost in items for number in (limit, cost)]
        rows = await SLIDING_WINDOW.run(connection, keys, [WINDOW * 1000, *numbers])
        return [
            Decision(bool(allowed), limit, remaining, math.ceil(wait / 1000))
            for limit, (allowed, remaining, wait) in zip(limits, zip(*[iter(rows)] * 3, strict=True), strict=True)
        ]


class LocalWindows:
    """The same window for one process alone, while Redis is out of reach."""

    SIZE = 10_000  # callers at most

    def __init__(self) -> None:
        self._windows: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def check(self, key: str, limit: int, cost: int) -> Decision:
        now = time.time()
        index, into = int(now // WINDOW), now % WINDOW
        at, current, previous = self._windows.pop(key, (index, 0, 0))
        if at != index:
            current, previous = 0, current if at == index - 1 else 0
        used = current + previous * (WINDOW - into) / WINDOW
        allowed = used + cost <= limit
        current += cost * allowed
        self._windows[key] = (index, current, previous)
        if len(self._windows) > self.SIZE:
            self._windows.popitem(last=False)
        return Decision(allowed, limit, max(0, int(limit - used - cost * allowed)), max(1, math.ceil(WINDOW - into)))
