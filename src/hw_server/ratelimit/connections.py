"""The limit on open sockets per user over all instances. Each socket holds a lease that its instance renews; leases of a
crashed instance expire."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Literal

from hw_server.errors import RateLimited, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.redis import CacheRedis, Keys
from hw_server.redis.batcher import BATCH, Batcher
from hw_server.redis.client import DedicatedConnection, Script
from hw_server.settings import RateLimitSettings

LEASE = 60  # seconds
RENEWAL = 20  # seconds
# Lease before the first renewal: short, so that a lease whose response was lost blocks its user for 25 s at most.
FIRST_LEASE = RENEWAL + 5  # seconds

# Acquires, renews or releases the lease of one socket per key. Returns for each whether the socket holds it afterwards.
LEASES = Script("""
local now = tonumber(redis.call('TIME')[1])
local most, first, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local results = {}
for i, key in ipairs(KEYS) do
  local action, socket = ARGV[2 * i + 2], ARGV[2 * i + 3]
  local free, seconds = 1, lease
  if action == 'acquire' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    if redis.call('ZCARD', key) >= most then free = 0 end
    seconds = first
  end
  if action == 'release' then
    redis.call('ZREM', key, socket)
    free = 0
  elseif free == 1 then
    redis.call('ZADD', key, now + seconds, socket)
    redis.call('EXPIRE', key, lease)
  end
  results[i] = free
end
return results
""")
Lease = tuple[Literal["acquire", "renew", "release"], str, str]  # what to do, sub, socket id


class ConnectionLimiter:
    """Leases in Redis, one sorted set per user."""

    def __init__(self, settings: RateLimitSettings, redis: CacheRedis, keys: Keys, metrics: Metrics) -> None:
        self._settings = settings
        self._keys = keys
        self._hits = metrics.rate_limit_hits.labels("sockets")
        self._fallback = metrics.rate_limit_fallback.labels("sockets")
        # Executed in order, so that an earlier renewal cannot restore a released lease.
        self._leases = Batcher[Lease, int](redis, "sockets", self._execute, metrics.service_failures.labels("sockets"))
        self._held: dict[str, str] = {}  # socket id -> sub

    async def acquire(self, sub: str, socket_id: str) -> None:
        """Takes a lease for a socket. Raises `RateLimited` when the user has as many as allowed, `Unavailable` without Redis
        where `ratelimit.on_redis_down` is `closed`."""
        try:
            free: int | bool = await self._leases.add(("acquire", sub, socket_id))
        except Unavailable:
            if self._settings.on_redis_down == "closed":
                raise
            self._fallback.inc()
            free = sum(held == sub for held in self._held.values()) < self._settings.sockets_per_user
        except BaseException:
            # Cancelled: Redis may have counted it all the same.
            self._held[socket_id] = sub
            await self.release(socket_id)
            raise
        if not free:
            self._hits.inc()
            raise RateLimited(LEASE, "too many open sockets")
        self._held[socket_id] = sub

    async def release(self, socket_id: str) -> None:
        """Best effort: a lease that cannot be deleted expires."""
        sub = self._held.pop(socket_id, None)
        if sub is not None:
            with suppress(Unavailable):
                await self._leases.add(("release", sub, socket_id))

    async def renew(self, open_sockets: Iterable[str]) -> bool:
        """Renews the leases of these sockets. Returns False without Redis, so that the caller retries soon: the first renewal of
        a lease must not be late."""
        remaining = iter(open_sockets)
        # A batch at a time, so that sockets that sign in do not wait behind all of them.
        while part := [*islice(remaining, BATCH)]:
            held = [(socket_id, self._held[socket_id]) for socket_id in part if socket_id in self._held]
            renewals = [self._leases.add(("renew", sub, socket_id)) for socket_id, sub in held]
            try:
                await asyncio.gather(*renewals)
            except Unavailable:
                return False
        return True

    async def _execute(self, connection: DedicatedConnection, leases: list[Lease]) -> list[int]:
        keys = [self._keys.sockets(sub) for _, sub, _ in leases]
        actions = [text for action, _, socket_id in leases for text in (action, socket_id)]
        free: list[int] = await LEASES.run(
            connection, keys, [self._settings.sockets_per_user, FIRST_LEASE, LEASE, *actions]
        )
        return free
