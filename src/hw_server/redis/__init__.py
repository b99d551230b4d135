"""Redis (or Valkey): two databases, key names in one place, short timeouts."""

from hw_server.redis.client import RedisClient
from hw_server.redis.keys import Keys

__all__ = ["Keys", "RedisClient"]
