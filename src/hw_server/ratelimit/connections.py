"""The limit on open sockets per user over all instances. Each socket holds a lease that its instance renews; leases of a
crashed instance expire."""

import contextlib
from collections.abc import Iterable
from typing import Any

from hw_server.errors import RateLimited, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.redis import CacheRedis, Keys
from hw_server.redis.client import Script
from hw_server.settings import RateLimitSettings

LEASE = 60  # seconds
RENEWAL = 20  # seconds

ACQUIRE = Script("""
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[3])
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[2]))
return 1
""")
RENEW = Script("""
local ends = tonumber(redis.call('TIME')[1]) + tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
  redis.call('ZADD', key, ends, ARGV[i + 1])
  redis.call('EXPIRE', key, tonumber(ARGV[1]))
end
return 1
""")


class ConnectionLimiter:
    """Leases in Redis, one sorted set per user."""

    def __init__(self, settings: RateLimitSettings, redis: CacheRedis, keys: Keys, metrics: Metrics) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = keys
        self._hits = metrics.rate_limit_hits.labels("sockets")
        self._fallback = metrics.rate_limit_fallback.labels("sockets")
        self._held: dict[str, str] = {}  # socket id -> sub

    async def acquire(self, sub: str, socket_id: str) -> None:
        """Takes a lease for a socket. Raises `RateLimited` when the user has as many as allowed, `Unavailable` without Redis
        where `ratelimit.on_redis_down` is `closed`."""
        args: list[Any] = [self._settings.sockets_per_user, LEASE, socket_id]
        try:
            free = await self._redis.run("sockets", lambda client: ACQUIRE.run(client, [self._keys.sockets(sub)], args))
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
            await self._delete(socket_id, sub)

    async def renew(self, open_sockets: Iterable[str]) -> None:
        """Prolongs the leases of these sockets."""
        held = [(socket_id, self._held[socket_id]) for socket_id in open_sockets if socket_id in self._held]
        for start in range(0, len(held), 500):
            part = held[start : start + 500]
            keys = [self._keys.sockets(sub) for _, sub in part]
            args: list[Any] = [LEASE, *(socket_id for socket_id, _ in part)]
            try:
                await self._redis.run("sockets", lambda client, k=keys, a=args: RENEW.run(client, k, a))  # type: ignore[misc]
            except Unavailable:
                return
            for socket_id, sub in part:
                if socket_id not in self._held:  # closed meanwhile, and perhaps released before it was renewed
                    await self._delete(socket_id, sub)

    async def _delete(self, socket_id: str, sub: str) -> None:
        with contextlib.suppress(Unavailable):
            await self._redis.run("sockets", lambda client: client.zrem(self._keys.sockets(sub), socket_id))
