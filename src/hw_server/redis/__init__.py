"""Redis (or Valkey): two databases, key names in one place, short timeouts."""

from hw_server.redis.client import AuthRedis, CacheRedis, RedisClient
from hw_server.redis.keys import Keys

__all__ = ["AuthRedis", "CacheRedis", "Keys", "RedisClient"]
