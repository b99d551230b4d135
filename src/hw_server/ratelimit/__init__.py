"""One limiter for HTTP and WebSocket, and the cap on sockets per user."""

from hw_server.ratelimit.limiter import Decision, RateLimiter
from hw_server.ratelimit.sockets import SocketCap

__all__ = ["Decision", "RateLimiter", "SocketCap"]
