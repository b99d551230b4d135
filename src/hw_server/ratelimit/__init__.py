"""One rate limiter for HTTP and WebSocket, and the limit on open sockets per user."""

from hw_server.ratelimit.connections import ConnectionLimiter
from hw_server.ratelimit.limiter import Decision, RateLimiter

__all__ = ["ConnectionLimiter", "Decision", "RateLimiter"]
