from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import Response

from hw_server.db import Database
from hw_server.health.checks import Health, Report
from hw_server.http.dependencies import provided
from hw_server.observability.metrics import Metrics

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health", operation_id="health.get", responses={503: {"model": Report}})
async def health(health: Annotated[Health, provided(Health)], response: Response) -> Report:
    """Report whether requests can be answered: 503 without PostgreSQL or while the process drains."""
    report = await health.report()
    if report.status in ("down", "draining"):
        response.status_code = 503
    return report


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
