"""The composition root: every part is constructed here, in order, and handed to those that need it."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from pydantic_core import to_json
from starlette.types import ASGIApp, Receive, Scope, Send

from hw_server import __version__
from hw_server.admission import Accounting, Admission
from hw_server.auth.authentication import Authentication
from hw_server.auth.jwks import SigningKeys
from hw_server.auth.revocations import Revocations
from hw_server.auth.tokens import TokenVerifier
from hw_server.console import add_console
from hw_server.db import Database
from hw_server.health import Health
from hw_server.health import router as health_router
from hw_server.http.docs import add_discovery, add_documents, sign_in_scheme
from hw_server.http.middleware import (
    AccessLogMiddleware,
    AdmissionMiddleware,
    BodyLimitMiddleware,
    ExceptionMiddleware,
    TrustedHostMiddleware,
    cors,
)
from hw_server.http.routes import OperationPaths, add_operations
from hw_server.http.secured_routes import secured
from hw_server.observability.logging import RequestLog
from hw_server.observability.metrics import Metrics
from hw_server.observability.process import ProcessMonitor
from hw_server.operations import AuditTrail, CountCache, Deadlines, Executor, Failures, Feature, Turns
from hw_server.operations.events import Outbox
from hw_server.ratelimit import ConnectionLimiter, RateLimiter
from hw_server.redis import AuthRedis, CacheRedis, Keys
from hw_server.runtime.lifecycle import Lifecycle
from hw_server.runtime.parts import Parts
from hw_server.runtime.supervisor import Supervisor
from hw_server.settings import Settings
from hw_server.topics import asyncapi
from hw_server.topics import feature as topics_feature
from hw_server.topics.registry import Registry
from hw_server.ws.dispatcher import Dispatcher
from hw_server.ws.endpoint import WebSocketEndpoint
from hw_server.ws.hub import Hub
from hw_server.ws.openrpc import OpenRpc
from hw_server.ws.operations import feature as socket_feature
from hw_server.ws.sign_in import SignIn


@dataclass(frozen=True, slots=True)
class Application:
    """What a server runs: the ASGI application, its start and shutdown, and its metrics."""

    asgi: ASGIApp
    api: FastAPI
    lifecycle: Lifecycle
    metrics: Metrics


def create_app(
    settings: Settings, features: Iterable[Feature], on_failure: Callable[[], None] = lambda: None
) -> Application:
    """Opens nothing; `lifecycle` does. `on_failure` is called when a background service ends unexpectedly. Raises ValueError
    for a declaration that cannot be right."""
    features = (socket_feature, topics_feature, *features)
    parts = Parts()
    parts.add(Settings, settings)
    metrics = parts.add(Metrics, Metrics())
    keys = parts.add(Keys, Keys(settings.redis.key_prefix))
    db = parts.add(Database, Database(settings.database, metrics))
    cache = parts.add(CacheRedis, CacheRedis(settings.redis, metrics))
    auth = parts.add(AuthRedis, AuthRedis(settings.redis, metrics))
    signing_keys = parts.add(SigningKeys, SigningKeys(settings.oidc))
    verifier = parts.add(TokenVerifier, TokenVerifier(settings.oidc, signing_keys, metrics))
    revocations = parts.add(Revocations, Revocations(settings.oidc, auth, keys, metrics))
    authentication = parts.add(Authentication, Authentication(verifier, revocations))
    limiter = parts.add(RateLimiter, RateLimiter(settings.ratelimit, cache, keys, metrics))
    connection_limiter = parts.add(ConnectionLimiter, ConnectionLimiter(settings.ratelimit, cache, keys, metrics))
    parts.add(CountCache, CountCache(cache, keys, metrics))
    health = parts.add(Health, Health(db, cache, auth, signing_keys, metrics))
    hub = parts.add(Hub, Hub(settings.ws, connection_limiter, metrics))
    revocations.listeners.append(hub.on_revoked)
    signing_keys.listeners.append(hub.on_keys_withdrawn)
    sign_in = parts.add(SignIn, SignIn(authentication, connection_limiter, hub))
    openrpc = parts.add(OpenRpc, OpenRpc(settings.http.public_url))
    registry = parts.add(Registry, Registry(features))
    for feature in features:
        for kind, factory in feature.provides.items():
            parts.provide(kind, factory)
    audit = parts[AuditTrail]
    deadlines = Deadlines(settings.http.request_timeout)
    limits = settings.ratelimit
    hits = metrics.rate_limit_hits.labels("calls")
    turns = parts.add(Turns, Turns(settings.database.pool_max, limits.calls_per_user, limits.waiting_per_user, hits))
    failures = Failures(audit, settings.audit.failures_per_minute, metrics.audit_rows.labels("suppressed"))
    executor = Executor(
        features, parts, db, audit, parts[Outbox], deadlines, turns, failures, settings.audit.record_reads
    )
    openrpc.describe(executor.operations.values(), features)
    admission = Admission(authentication, limiter)
    request_log = RequestLog(settings.log)
    accounting = Accounting(metrics, request_log)
    dispatcher = Dispatcher(settings, executor, admission, accounting, metrics)
    endpoint = WebSocketEndpoint(
        settings, hub, dispatcher.handle, metrics, admission, sign_in, audit, failures, accounting
    )
    services = [construct(parts) for feature in features for construct in feature.services]
    supervisor = Supervisor(
        [*services, signing_keys, revocations, health, deadlines, hub, ProcessMonitor(metrics)], on_failure
    )

    lifecycle = Lifecycle(
        supervisor,
        unready=health.start_draining,
        close=(db.stop, cache.close, auth.close, signing_keys.close),
        drain_delay=settings.http.drain_delay,
        service_timeout=settings.http.shutdown_timeout / 3,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        lifecycle.start()
        yield
        await lifecycle.stop()

    # A redirect of `/things/` to `/things` would send the client to the host name that it gave itself in `Host`.
    api = FastAPI(
        title="hw-server",
        openapi_url=None,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    api.state.parts = parts
    # Before the operations, so that a feature's `/things/export` is not taken for `/things/{id}`.
    for feature in features:
        if feature.router is not None:
            api.include_router(secured(feature, audit, failures, settings.audit.record_reads))
    add_operations(api.router, executor, sign_in_scheme(), settings.http.max_json_members)
    api.include_router(health_router)
    if settings.http.docs or settings.http.console:
        add_discovery(api, settings.oidc, signing_keys)
    if settings.http.docs:
        add_documents(
            api,
            settings.oidc,
            {
                "/openrpc.json": lambda: openrpc.document,
                "/asyncapi.json": lambda: to_json(asyncapi.describe(registry, settings.http.public_url)),
            },
        )
    if settings.http.console:
        add_console(api, settings)

    exempt = frozenset(f"/api{path}" for feature in features for path in feature.exempt)
    # FastAPI's own default middleware is left out; the exit stack is what its dependencies need. Outermost first:
    middleware: list[Callable[[ASGIApp], ASGIApp]] = [
        lambda app: AccessLogMiddleware(app, settings.http, accounting, metrics, lambda: health.draining),
        lambda app: cors(app, settings.http.cors_origins),
        ExceptionMiddleware,
        lambda app: TrustedHostMiddleware(app, settings.http),
        lambda app: BodyLimitMiddleware(app, settings.http),
        lambda app: AdmissionMiddleware(app, admission, settings.ratelimit.http_per_minute, exempt, metrics),
        lambda app: OperationPaths(app, api.router),
        AsyncExitStackMiddleware,
    ]
    web: ASGIApp = api.router
    for wrap in reversed(middleware):
        web = wrap(web)

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await endpoint(scope, receive, send)
            return
        scope["app"] = api
        await (web if scope["type"] == "http" else api.router)(scope, receive, send)

    return Application(asgi, api, lifecycle, metrics)
