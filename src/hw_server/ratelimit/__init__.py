"""One rate limiter for HTTP and WebSocket, local rates, and the limit on open sockets per user."""

from hw_server.ratelimit.connections import ConnectionLimiter
from hw_server.ratelimit.limiter import Decision, RateLimiter, client_key
from hw_server.ratelimit.rate import Rate, Rates

__all__ = ["ConnectionLimiter", "Decision", "Rate", "RateLimiter", "Rates", "client_key"]
