"""Health probes and the Prometheus metrics, outside `/api`; no sign-in, no rate limit."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response

from hw_server.db import Database
from hw_server.health.checks import Health, Readiness, Report
from hw_server.http.dependencies import provided
from hw_server.observability.metrics import Metrics

FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")  # what proxies add

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health", operation_id="health.get", responses={503: {"model": Report}})
async def health(health: Annotated[Health, provided(Health)], request: Request, response: Response) -> Report:
    """Report whether requests can be answered: 503 without PostgreSQL or while the process drains. Components and their
    latencies are named to requests that came through no proxy."""
    report = await health.report()
    if report.status in ("down", "draining"):
        response.status_code = 503
    if any(name in request.headers for name in FORWARDED):
        return Report(status=report.status)
    return report


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", operation_id="health.ready", responses={503: {"model": Readiness}})
async def ready(health: Annotated[Health, provided(Health)], response: Response) -> Readiness:
    """Report whether a load balancer should send requests here: 503 only while the process starts or drains."""
    readiness = health.readiness
    if readiness.status != "ok":
        response.status_code = 503
    return readiness


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", operation_id="health.live")
async def live() -> dict[str, str]:
    """Report that the process is alive."""
    return {"status": "ok"}


@router.get("/metrics", operation_id="health.metrics", response_class=Response, include_in_schema=False)
async def expose(
    metrics: Annotated[Metrics, provided(Metrics)], db: Annotated[Database, provided(Database)]
) -> Response:
    """Get all metrics as Prometheus text."""
    db.report()
    return Response(metrics.expose(), media_type=metrics.content_type)
