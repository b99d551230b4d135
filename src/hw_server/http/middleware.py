"""Plain ASGI middleware. `app.py` lists it, outermost first: what measures and adds headers stands outside what can refuse."""

import re
import time
from collections import Counter
from collections.abc import Callable
from random import getrandbits

import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hw_server.admission import Accounting, Admission
from hw_server.errors import InternalError, PayloadTooLarge, RateLimited, Unavailable
from hw_server.http.addresses import Hosts, client_address, header
from hw_server.http.problems import domain_error, problem_response
from hw_server.observability.logging import current_call
from hw_server.observability.metrics import Metrics
from hw_server.operations import Call, limit_members
from hw_server.ratelimit import Rates, client_key
from hw_server.settings import HttpSettings

log = structlog.get_logger("http")

CALL = "hw.call"  # the scope's key of this request's Call
HEADERS = "hw.headers"  # the scope's key of headers for the response, also where an exception makes it
# Requested by probes, often and by any host name.
EXEMPT_PATHS = frozenset({"/health", "/health/ready", "/health/live", "/metrics"})
CLOSE = (b"connection", b"close")
FORM = "application/x-www-form-urlencoded"
FORM_BYTES = 65_536
FORM_FIELDS = 1000
REFUSALS_PER_MINUTE = 60  # of one address, on paths without admission
IN_PROGRESS = 100  # requests of one address there at once
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# A request without either has no body (RFC 9112, section 6.3).
BODY_FIELDS = frozenset({b"content-length", b"transfer-encoding"})
# A route may set any of these to another value.
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
    value = header(scope, b"x-request-id")
    return value.decode() if value is not None and REQUEST_ID.fullmatch(value) else f"{getrandbits(64):016x}"


def add_default_headers(message: Message, request_id: str) -> None:
    """Adds the security headers and `X-Request-ID` to the start of a response."""
    headers = message["headers"] = list(message.get("headers", ()))
    own = {name for name, _ in headers}
    headers += [item for item in DEFAULT_HEADERS if item[0] not in own]
    headers.append((b"x-request-id", request_id.encode()))


class AccessLogMiddleware:
    """Request id, security headers, metrics and the request's log line. Neither covers probes, which would
    outnumber user requests in metrics. While the process is `draining`, responses carry `Connection: close`, so that clients and
    proxies connect to another instance."""

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        accounting: Accounting,
        metrics: Metrics,
        draining: Callable[[], bool],
    ) -> None:
        self.app = app
        self._draining = draining
        self._trusted = settings.trusted_proxies
        self._accounting = accounting
        self._in_progress = metrics.http_in_progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        call = scope[CALL] = Call("http", request_id_of(scope), client_address(scope, self._trusted), started)
        current_call.set(call)
        status = 499  # the client went away before the response began

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, call.answered = message["status"], True
                add_default_headers(message, call.request_id)
                message["headers"] += scope.get(HEADERS, ())
                if self._draining():
                    message["headers"].append(CLOSE)
            await send(message)

        self._in_progress.inc()
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            self._in_progress.dec()
            if scope["path"] not in EXEMPT_PATHS:
                method = scope["method"] if scope["method"] in METHODS else "other"
                route = getattr(scope.get("route"), "path", None) or "unmatched"
                self._accounting.request(call, method, route, status)


class ExceptionMiddleware:
    """The one place where an exception becomes a response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            # Not in a variable of this function: it would be in its own traceback, a cycle that only a rare collection frees.
            await self._respond(error, scope, receive, send)

    async def _respond(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope[CALL]
        problem = domain_error(error)
        if problem is None:
            log.error("request_failed", exc_info=error)
            problem = InternalError()
        if call.answered:
            # Part of a response was sent: only closing the connection tells the client, which uvicorn does.
            log.warning("response_cut_short", code=problem.code)
            return
        await problem_response(problem, call.request_id)(scope, receive, send)


class TrustedHostMiddleware:
    """Refuses requests for host names that are not in `http.allowed_hosts`."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self.app = app
        self._hosts = Hosts(settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in EXEMPT_PATHS:
            self._hosts.check(scope)
        await self.app(scope, receive, send)


def media_type(scope: Scope) -> str:
    """Of the body, without parameters; JSON where the request names none."""
    value = header(scope, b"content-type") or b"application/json"
    return value.decode("latin-1").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


class BodyLimitMiddleware:
    """Refuses bodies over `http.max_body_bytes`, announced or streamed; JSON of more than `http.max_json_members`; of forms, whose
    parser is slow, those over `FORM_BYTES` or `FORM_FIELDS`."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self.app = app
        self._limit = settings.max_body_bytes
        self._max_members = settings.max_json_members

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not any(name in BODY_FIELDS for name, _ in scope["headers"]):
            await self.app(scope, receive, send)
            return
        kind = media_type(scope)
        # A body without a content type is checked as JSON only where an operation takes it as JSON (`routes.py`).
        form, json = kind == FORM, is_json(kind) and bool(header(scope, b"content-type"))
        limit = min(self._limit, FORM_BYTES) if form else self._limit
        length = header(scope, b"content-length")
        # Without leading zeros: `int` refuses texts of more than 4,300 digits.
        if length is not None and (not length.isdigit() or int(length.lstrip(b"0") or b"0") > limit):
            raise PayloadTooLarge(f"at most {limit} bytes")
        received = fields = 0
        pieces: list[bytes] = []  # of JSON
        refusal: PayloadTooLarge | None = None

        async def receive_limited() -> Message:
            nonlocal received, fields, refusal
            message = await receive()
            if message["type"] == "http.request":
                piece = message.get("body", b"")
                received += len(piece)
                try:
                    if received > limit:
                        raise PayloadTooLarge(f"at most {limit} bytes")
                    if form:
                        fields += piece.count(b"&")
                        if fields > FORM_FIELDS:
                            raise PayloadTooLarge(f"at most {FORM_FIELDS} fields")
                    elif json:
                        pieces.append(piece)
                        if not message.get("more_body"):
                            limit_members(b"".join(pieces), self._max_members)
                except PayloadTooLarge as error:
                    refusal = error
                    raise
            return message

        try:
            await self.app(scope, receive_limited, send)
        except Exception:
            if refusal is not None:
                raise refusal from None  # FastAPI turns an exception raised while it reads a body into a 400
            raise
        finally:
            # The error's traceback leads to this frame and to the body: a cycle that only a rare collection would free.
            refusal = None
            pieces.clear()


class AdmissionMiddleware:
    """Authentication and rate limit, with the `RateLimit` headers. The operation decides whether a caller is
    needed. `exempt` paths, which machines call as often as they must, have neither: there only refusals and requests in progress
    are limited, per address."""

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        requests_per_minute: int,
        exempt: frozenset[str],
        metrics: Metrics,
    ) -> None:
        self.app = app
        self._admission = admission
        self._hits = metrics.rate_limit_hits.labels("refused")
        self._limit = requests_per_minute
        self._exempt = exempt
        self._refusals = Rates(REFUSALS_PER_MINUTE)
        self._running: Counter[str] = Counter()  # of each address on exempt paths
        self._policy = (b"ratelimit-policy", b"%d;w=60" % requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in EXEMPT_PATHS:
            await self.app(scope, receive, send)
            return
        if scope["path"] in self._exempt:
            await self._exempted(scope, receive, send)
            return
        call: Call = scope[CALL]
        authorization = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"user-agent":
                call.user_agent = value.decode("latin-1")
        try:
            decision = await self._admission.admit("http", call, authorization)
        except RateLimited as refusal:
            scope[HEADERS] = self._headers(self._limit, 0, refusal.retry_after)
            raise
        scope[HEADERS] = self._headers(*decision[1:])
        await self.app(scope, receive, send)

    async def _exempted(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = client_key(scope[CALL].client_ip)
        if self._refusals.exhausted(who) or self._running[who] >= IN_PROGRESS:
            self._hits.inc()
            raise RateLimited(1)
        self._running[who] += 1
        try:
            await self.app(scope, receive, send)
        except Unavailable:
            raise  # not counted: an outage is not the caller's fault, and a provider repeats its mass logout after it
        except Exception:
            self._refusals.take(who)
            raise
        finally:
            self._running[who] -= 1
            if not self._running[who]:
                del self._running[who]

    def _headers(self, limit: int, remaining: int, reset: int) -> tuple[tuple[bytes, bytes], ...]:
        """draft-ietf-httpapi-ratelimit-headers, version 7."""
        return (b"ratelimit", b"limit=%d, remaining=%d, reset=%d" % (limit, remaining, reset)), self._policy


def cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Starlette's CORS middleware where pages of other origins may call the API."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "X-Request-ID"],
        expose_headers=["X-Request-ID", "RateLimit", "RateLimit-Policy", "Retry-After"],
    )
