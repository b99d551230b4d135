"""Plain ASGI middleware, outermost first: `Observe`, CORS, `Problems`, `Guard`, `Identify`, then the routes. What measures
and adds headers stands outside what can refuse."""

import re
import time
from random import getrandbits
from typing import Any

import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hw_server.auth.authentication import Authentication
from hw_server.errors import DomainError, PayloadTooLarge, RateLimited
from hw_server.http.addresses import Hosts, client_address, header
from hw_server.http.problems import domain_error, response_of
from hw_server.observability.logging import RequestLog
from hw_server.observability.metrics import Metrics
from hw_server.operations import Call
from hw_server.ratelimit import RateLimiter
from hw_server.settings import HttpSettings

log = structlog.get_logger("http")

CALL = "hw.call"  # the scope's key of this request's Call
HEADERS = "hw.headers"  # the scope's key of headers for the answer, whoever gives it
EXEMPT_PATHS = frozenset({"/health", "/health/live", "/metrics"})  # asked from inside, often and by whatever name
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# A route may answer with its own value of any of these.
DEFAULT_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


def request_id_of(scope: Scope) -> str:
    """The caller's `X-Request-ID` where it is usable, else a new one."""
    given = header(scope, b"x-request-id")
    return given.decode() if given is not None and REQUEST_ID.fullmatch(given) else f"{getrandbits(64):016x}"


class Observe:
    """Request id, security headers, metrics and the request's log line."""

    def __init__(self, app: ASGIApp, settings: HttpSettings, metrics: Metrics, requests_log: RequestLog) -> None:
        self.app = app
        self._trusted = settings.trusted_proxies
        self._requests_log = requests_log
        self._in_progress = metrics.http_in_progress
        self._requests = metrics.http_requests
        self._durations = metrics.http_duration
        self._series: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        call = Call("http", request_id_of(scope), client_address(scope, self._trusted), started)
        scope[CALL] = call
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, call.answered = message["status"], True
                headers = message["headers"] = list(message.get("headers", ()))
                own = {name for name, _ in headers}
                headers += [item for item in DEFAULT_HEADERS if item[0] not in own]
                headers.append((b"x-request-id", call.request_id.encode()))
                headers += scope.get(HEADERS, ())
            await send(message)

        self._in_progress.inc()
        try:
            await self.app(scope, receive, observed)
        finally:
            self._in_progress.dec()
            self._account(scope, call, status)

    def _account(self, scope: Scope, call: Call, status: int) -> None:
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        method = scope["method"] if scope["method"] in METHODS else "other"
        # 499: the client went away before the answer began.
        status = status or 499
        key = (method, route, status)
        series = self._series.get(key)
        if series is None:
            series = (
                self._requests.labels(method, route, str(status)),
                self._durations.labels(method, route),
            )
            self._series[key] = series
        elapsed = time.perf_counter() - call.started
        series[0].inc()
        series[1].observe(elapsed)
        fields = {
            "request_id": call.request_id,
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(elapsed * 1000, 2),
            "user_id": call.caller.sub if call.caller else None,
            "client_ip": call.client_ip,
        }
        self._requests_log.write("request", fields)


class Problems:
    """The one place where an exception becomes an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            call: Call = scope[CALL]
            problem = domain_error(error)
            if problem is None:
                log.exception("request_failed", request_id=call.request_id)
                problem = DomainError()
            if call.answered:
                # Half of an answer was sent: cutting the connection is all that tells the client.
                raise
            await response_of(problem, call.request_id)(scope, receive, send)


class Guard:
    """Refuses hosts that are not ours and bodies over the limit, announced or streamed."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self.app = app
        self._limit = settings.max_body_bytes
        self._hosts = Hosts(settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in EXEMPT_PATHS:
            self._hosts.check(scope)
        if scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        length = header(scope, b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self._limit):
            raise PayloadTooLarge(f"at most {self._limit} bytes")
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._limit:
                    raise PayloadTooLarge(f"at most {self._limit} bytes")
            return message

        await self.app(scope, limited, send)


class Identify:
    """Finds the caller and counts the request against its limit; whether a caller is needed is the operation's say.
    Neither for the paths in `exempt`."""

    def __init__(
        self, app: ASGIApp, identification: Authentication, limiter: RateLimiter, exempt: frozenset[str]
    ) -> None:
        self.app = app
        self._identification = identification
        self._limiter = limiter
        self._unlimited = EXEMPT_PATHS | exempt
        self._policy = f"{limiter.limit('http')};w=60".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in self._unlimited:
            await self.app(scope, receive, send)
            return
        call: Call = scope[CALL]
        credentials = agent = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                credentials = value
            elif name == b"user-agent":
                agent = value
        try:
            call.caller = await self._identification.by_header(credentials, call.client_ip, agent)
        except DomainError as refusal:
            call.refusal = refusal
        who = f"user:{call.caller.sub}" if call.caller else f"address:{call.client_ip}"
        try:
            decision = await self._limiter.check("http", who)
        except RateLimited as refusal:
            scope[HEADERS] = self._headers(self._limiter.limit("http"), 0, refusal.retry_after)
            raise
        scope[HEADERS] = self._headers(*decision[1:])
        await self.app(scope, receive, send)

    def _headers(self, limit: int, remaining: int, reset: int) -> tuple[tuple[bytes, bytes], ...]:
        budget = b"limit=%d, remaining=%d, reset=%d" % (limit, remaining, reset)
        return (b"ratelimit", budget), (b"ratelimit-policy", self._policy)


def cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
        expose_headers=["X-Request-ID", "RateLimit", "RateLimit-Policy", "Retry-After"],
    )
