"""The composition root: every part is constructed here, in order, and handed to those that need it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hw_server import __version__
from hw_server.audit.partitions import Partitions
from hw_server.audit.writer import AuditWriter
from hw_server.auth.authentication import Authentication
from hw_server.auth.jwks import SigningKeys
from hw_server.auth.sessions import Revocations, SessionStore
from hw_server.auth.tokens import TokenVerifier
from hw_server.console import add_console
from hw_server.db import Database
from hw_server.health import Health
from hw_server.health import router as health_router
from hw_server.http.docs import add_documents, sign_in_scheme
from hw_server.http.middleware import Guard, Identify, Observe, Problems, cors
from hw_server.http.problems import status_of
from hw_server.http.routes import add_operations
from hw_server.observability.logging import RequestLog
from hw_server.observability.metrics import Metrics
from hw_server.operations import AuditTrail, CountCache, Deadlines, Executor, Feature
from hw_server.ratelimit import ConnectionLimiter, RateLimiter
from hw_server.redis import Keys, RedisClient
from hw_server.runtime.supervisor import Supervisor
from hw_server.settings import Settings
from hw_server.ws.dispatcher import Dispatcher
from hw_server.ws.endpoint import WebSocketEndpoint
from hw_server.ws.hub import Hub
from hw_server.ws.openrpc import describe

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Application:
    """What a server runs: the ASGI application, how to end it, and what the server itself counts in."""

    asgi: ASGIApp
    api: FastAPI
    lifecycle: "Lifecycle"
    metrics: Metrics


class Lifecycle:
    """Start and shutdown, in order. Shutdown: readiness off, sockets told and closed, requests finished (the server does
    that), services drained, pools closed; each step within its deadline."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        cache: RedisClient,
        auth: RedisClient,
        keys: SigningKeys,
        health: Health,
        hub: Hub,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings.http
        self._db = db
        self._cache = cache
        self._auth = auth
        self._keys = keys
        self._health = health
        self._hub = hub
        self._supervisor = supervisor

    async def start(self) -> None:
        self._supervisor.start()
        log.info("started", version=__version__)

    async def drain(self, timeout: float) -> None:
        """While connections are still accepted: load balancers see 503 and go elsewhere, then sockets are told and closed,
        with `timeout` seconds for calls in flight."""
        log.info("draining", sockets=len(self._hub.connections))
        self._health.draining = True
        await asyncio.sleep(self._settings.drain_delay)
        await self._hub.close_all(timeout)

    async def stop(self) -> None:
        """After the last request was answered."""
        await self._supervisor.stop(timeout=self._settings.shutdown_timeout / 3)
        await self._db.stop()
        await self._cache.close()
        await self._auth.close()
        await self._keys.close()
        log.info("stopped")


def create_app(
    settings: Settings, features: Iterable[Feature], on_failure: Callable[[], None] = lambda: None
) -> Application:
    """`on_failure` is called when a background service ends unexpectedly."""
    features = tuple(features)
    metrics = Metrics()
    names = Keys(settings.redis.key_prefix)
    db = Database(settings.database, metrics)
    cache = RedisClient(settings.redis, settings.redis.cache_db, metrics)
    auth = RedisClient(settings.redis, settings.redis.auth_db, metrics)
    signing_keys = SigningKeys(settings.oidc)
    verifier = TokenVerifier(settings.oidc, signing_keys, metrics)
    revocations = Revocations(settings.oidc, auth, names)
    sessions = SessionStore(auth, names, revocations)
    identification = Authentication(verifier, revocations, sessions)
    limiter = RateLimiter(settings.ratelimit, cache, names, metrics)
    connection_limiter = ConnectionLimiter(settings.ratelimit, cache, names, metrics)
    totals = CountCache(cache, names)
    trail = AuditWriter(settings.audit, db, metrics)
    partitions = Partitions(settings.audit.retention_months, db)
    health = Health(db, cache, auth, signing_keys, metrics)
    hub = Hub(settings.ws, connection_limiter, metrics)
    revocations.listeners.append(hub.on_revoked)
    provided: dict[Any, Any] = {
        Settings: settings,
        Metrics: metrics,
        Database: db,
        TokenVerifier: verifier,
        SessionStore: sessions,
        CountCache: totals,
        AuditTrail: trail,
        Health: health,
    }
    deadlines = Deadlines(settings.http.request_timeout)
    executor = Executor(features, provided, db, trail, deadlines, settings.audit.record_reads, status_of)
    requests_log = RequestLog(settings.log.requests and settings.log.level in ("debug", "info"))
    document = describe(executor, settings.http.public_url)
    dispatcher = Dispatcher(
        settings, executor, identification, limiter, connection_limiter, trail, metrics, requests_log, lambda: document
    )
    # Stopped in reverse order: the audit trail last, after everything that writes to it.
    supervisor = Supervisor([trail, partitions, revocations, sessions, health, deadlines, hub], on_failure)
    lifecycle = Lifecycle(settings, db, cache, auth, signing_keys, health, hub, supervisor)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await lifecycle.start()
        yield
        await lifecycle.stop()

    # No redirect of `/things/` to `/things`: its address would be made of the request's own Host header.
    api = FastAPI(
        title="hw-server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    api.state.provided = provided
    # Before the operations, so that a feature's `/things/export` is not taken for `/things/{id}`.
    for feature in features:
        if feature.router is not None:
            api.include_router(feature.router, prefix="/api")
    add_operations(api.router, executor, sign_in_scheme())
    api.include_router(health_router)
    add_documents(api, settings.oidc, signing_keys)
    add_console(api, settings)

    @api.get("/openrpc.json", include_in_schema=False)
    async def openrpc() -> JSONResponse:
        return JSONResponse(document)

    # Innermost first.
    exempt = frozenset(f"/api{path}" for feature in features for path in feature.exempt)
    web: ASGIApp = Identify(AsyncExitStackMiddleware(api.router), identification, limiter, exempt)
    web = Problems(Guard(web, settings.http))
    if settings.http.cors_origins:
        web = cors(web, settings.http.cors_origins)
    web = Observe(web, settings.http, metrics, requests_log)
    return Application(
        _served(api, web, WebSocketEndpoint(settings, hub, dispatcher, limiter, requests_log)), api, lifecycle, metrics
    )


def _served(api: FastAPI, web: ASGIApp, sockets: ASGIApp) -> ASGIApp:
    """FastAPI gives the routes; the middleware around them is ours, in place of Starlette's default stack."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await sockets(scope, receive, send)
            return
        scope["app"] = api
        await (web if scope["type"] == "http" else api.router)(scope, receive, send)

    return application
