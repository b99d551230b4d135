"""Sliding window counters in Redis, on Redis' own clock. Decisions that are asked for during one round trip share the next, so
that a busy worker pays a fraction of a round trip for each."""

import asyncio
import math
import time
from collections import OrderedDict
from contextvars import Context
from ipaddress import IPv6Network
from typing import Any, NamedTuple

import structlog

from hw_server.errors import RateLimited, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.redis import CacheRedis, Keys
from hw_server.redis.client import Script
from hw_server.settings import RateLimitSettings

log = structlog.get_logger()

WINDOW = 60  # seconds
BATCH = 128

# Per key two counters, of this window and the one before; the older one counts for the part of it that the sliding
# window still covers. Returns for each key: allowed, remaining, milliseconds until there is room or the window ends.
SLIDING_WINDOW = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local size = tonumber(ARGV[1])
local index = math.floor(now / size)
local into = now - index * size
local answers = {}
for i, key in ipairs(KEYS) do
  local limit = tonumber(ARGV[i + 1])
  local state = redis.call('HMGET', key, 'i', 'c', 'p')
  local at, current, previous = tonumber(state[1]), tonumber(state[2]) or 0, tonumber(state[3]) or 0
  if at ~= index then
    if at == index - 1 then previous = current else previous = 0 end
    current = 0
  end
  local used = current + previous * (size - into) / size
  local wait = size - into
  if used + 1 <= limit then
    current = current + 1
    redis.call('HSET', key, 'i', index, 'c', current, 'p', previous)
    redis.call('PEXPIRE', key, size * 2)
    answers[#answers + 1] = 1
    answers[#answers + 1] = math.floor(limit - used - 1)
  else
    if current + 1 <= limit and previous > 0 then
      wait = size - into - (limit - current - 1) * size / previous
    end
    answers[#answers + 1] = 0
    answers[#answers + 1] = 0
  end
  answers[#answers + 1] = math.max(1, math.ceil(wait))
end
return answers
""")


def client_key(address: str | None) -> str:
    """What a client's address counts as: one host has a whole /64 of IPv6 (RFC 6177), 2**64 addresses to come from."""
    if address is None or ":" not in address:
        return str(address)
    return str(IPv6Network((address.partition("%")[0], 64), strict=False))


class Decision(NamedTuple):
    """`reset` is in whole seconds: when the window ends, or for a refusal when there is room again."""

    allowed: bool
    limit: int
    remaining: int
    reset: int


Pending = tuple[str, int, "asyncio.Future[Decision]"]  # key, limit, and who waits


class RateLimiter:
    """Limits by scope (`http`, `ws`, `handshake`, `publish`) and caller. Without Redis a local window counts, or every request is
    refused, as
    `ratelimit.on_redis_down` says."""

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
        self._failures = metrics.service_failures.labels("ratelimit")
        self._pending: list[Pending] = []
        self._flusher: asyncio.Task[None] | None = None

    async def check(self, scope: str, who: str) -> Decision:
        """Counts one request of `who`. Raises `RateLimited`, or `Unavailable` without Redis where `ratelimit.on_redis_down` is
        `closed`."""
        limit = self._limits[scope]
        if self._redis.circuit_open:
            decision = self._without_redis(scope, who, limit)
        else:
            try:
                decision = await self._enqueue(self._keys.rate(scope, who), limit)
            except Unavailable:
                decision = self._without_redis(scope, who, limit)
        if not decision.allowed:
            self._hits.labels(scope).inc()
            raise RateLimited(decision.reset)
        return decision

    def limit(self, scope: str) -> int:
        return self._limits[scope]

    def _without_redis(self, scope: str, who: str, limit: int) -> Decision:
        if self._settings.on_redis_down == "closed":
            raise Unavailable("rate limits cannot be checked")
        self._fallback.labels(scope).inc()
        return self._local.check(f"{scope}:{who}", limit)

    def _enqueue(self, key: str, limit: int) -> "asyncio.Future[Decision]":
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._pending.append((key, limit, future))
        if self._flusher is None:
            # Shared by several requests, so it logs in the name of none.
            self._flusher = asyncio.create_task(self._flush(), name="ratelimit", context=Context())
        return future

    async def _flush(self) -> None:
        """Runs until nothing is pending; a failure goes to the callers of its batch."""
        try:
            while self._pending:
                batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
                try:
                    rows = await self._redis.run("ratelimit", lambda _, b=batch: _evaluate(self._redis.dedicated, b))  # type: ignore[misc]
                    decisions = [
                        Decision(bool(allowed), limit, remaining, math.ceil(wait / 1000))
                        for (_, limit, _), (allowed, remaining, wait) in zip(
                            batch, zip(*[iter(rows)] * 3, strict=True), strict=True
                        )
                    ]
                except Unavailable as error:
                    _fail(batch, error)
                    continue
                except Exception:
                    # A defect, and of this batch alone: the others go on.
                    log.exception("rate_limit_batch_failed", decisions=len(batch))
                    self._failures.inc()
                    _fail(batch, Unavailable("rate limits cannot be checked"))
                    continue
                for decision, (_, _, future) in zip(decisions, batch, strict=True):
                    if not future.done():
                        future.set_result(decision)
        finally:
            self._flusher = None


def _fail(batch: list[Pending], error: Unavailable) -> None:
    for _, _, future in batch:
        if not future.done():
            future.set_exception(error)


async def _evaluate(client: Any, batch: list[Pending]) -> Any:
    return await SLIDING_WINDOW.run(
        client, [key for key, _, _ in batch], [WINDOW * 1000, *(limit for _, limit, _ in batch)]
    )


class LocalWindows:
    """The same window for one process alone, while Redis is out of reach."""

    SIZE = 10_000  # callers at most

    def __init__(self) -> None:
        self._windows: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def check(self, key: str, limit: int) -> Decision:
        now = time.time()
        index, into = int(now // WINDOW), now % WINDOW
        at, current, previous = self._windows.pop(key, (index, 0, 0))
        if at != index:
            current, previous = 0, current if at == index - 1 else 0
        used = current + previous * (WINDOW - into) / WINDOW
        allowed = used + 1 <= limit
        self._windows[key] = (index, current + allowed, previous)
        if len(self._windows) > self.SIZE:
            self._windows.popitem(last=False)
        return Decision(allowed, limit, max(0, int(limit - used - allowed)), max(1, math.ceil(WINDOW - into)))
