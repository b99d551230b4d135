"""Health checks of PostgreSQL, Redis and the identity provider, repeated in the background."""

import asyncio
import time
from typing import Any, Literal

import structlog
from pydantic import BaseModel, Field

from hw_server.auth.jwks import SigningKeys
from hw_server.db import Database
from hw_server.errors import DomainError
from hw_server.observability.metrics import Metrics
from hw_server.redis import AuthRedis, CacheRedis

log = structlog.get_logger()

INTERVAL = 5.0  # seconds between two checks of the background service
MAX_AGE = 1.0  # seconds; a younger report is not made again
TIMEOUT = 2.0  # seconds for one component


class Component(BaseModel):
    """The last check of one component. `latency_ms` is in milliseconds; `error` is there only when it is down."""

    status: Literal["ok", "down"]
    latency_ms: float
    error: str | None = Field(None, exclude_if=lambda value: value is None)


class Report(BaseModel):
    """`down` without PostgreSQL, `degraded` with another component down. `components` are left out where the request came
    through a proxy: they name the parts behind the server."""

    status: Literal["ok", "degraded", "down", "draining"]
    components: dict[str, Component] | None = Field(None, exclude_if=lambda value: value is None)


class Readiness(BaseModel):
    """`starting` until each component was checked once, `draining` from the beginning of the shutdown."""

    status: Literal["ok", "starting", "draining"]


class Health:
    """A supervised service that keeps the gauges up to date also without requests. A component that does not answer within
    `TIMEOUT` seconds is down."""

    name = "health"

    def __init__(self, db: Database, cache: CacheRedis, auth: AuthRedis, keys: SigningKeys, metrics: Metrics) -> None:
        self._checks: dict[str, Any] = {
            "postgresql": db.ping,
            "redis_cache": cache.ping,
            "redis_auth": auth.ping,
            "identity": keys.discover,
        }
        self._db_up, self._redis_up = metrics.db_up, metrics.redis_up
        self._report: Report | None = None
        self._checked = 0.0
        self._lock = asyncio.Lock()
        self.draining = False

    def start_draining(self) -> None:
        """From now on the process is not ready."""
        self.draining = True

    @property
    def readiness(self) -> Readiness:
        """Ready once each component was checked, whatever the result: without PostgreSQL the server answers 503 itself."""
        if self.draining:
            return Readiness(status="draining")
        return Readiness(status="starting" if self._report is None else "ok")

    async def report(self) -> Report:
        async with self._lock:
            if self._report is None or time.monotonic() - self._checked > MAX_AGE:
                report = await self._check()
                if self._report is None or report.status != self._report.status:
                    down = [name for name, part in (report.components or {}).items() if part.status == "down"]
                    log.info("health", status=report.status, down=down)
                self._report = report
                self._checked = time.monotonic()
        if self.draining:
            return self._report.model_copy(update={"status": "draining"})
        return self._report

    async def run(self) -> None:
        while True:
            await self.report()
            await asyncio.sleep(INTERVAL)

    async def _check(self) -> Report:
        results = await asyncio.gather(*(self._run_check(check) for check in self._checks.values()))
        components = dict(zip(self._checks, results, strict=True))
        self._db_up.set(components["postgresql"].status == "ok")
        self._redis_up.set(components["redis_cache"].status == components["redis_auth"].status == "ok")
        if components["postgresql"].status == "down":
            status: Literal["ok", "degraded", "down"] = "down"
        else:
            status = "ok" if all(item.status == "ok" for item in results) else "degraded"
        return Report(status=status, components=components)

    @staticmethod
    async def _run_check(check: Any) -> Component:
        started, error = time.perf_counter(), None
        try:
            await asyncio.wait_for(check(), TIMEOUT)
        except DomainError as problem:
            error = problem.detail or problem.title
        except TimeoutError:
            error = f"no answer in {TIMEOUT:g} s"
        latency = round((time.perf_counter() - started) * 1000, 2)
        return Component(status="down" if error else "ok", latency_ms=latency, error=error)
