"""`hw audit`: the audit trail, from the database."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from hw_server.cli.serve import settings_or_exit

if TYPE_CHECKING:
    from hw_server.audit.models import AuditEntry, AuditFilter

app = typer.Typer(help="Read the audit trail.", no_args_is_help=True)


@app.command("list")
def list_entries(
    user: Annotated[str | None, typer.Option(help="`sub` or user name.")] = None,
    action: Annotated[str | None, typer.Option(help="Name of the operation.")] = None,
    resource: Annotated[str | None, typer.Option(help="The resource or what is below it.")] = None,
    outcome: Annotated[str | None, typer.Option(help="success, denied or failure.")] = None,
    request_id: Annotated[str | None, typer.Option(help="Id of one request.")] = None,
    since: Annotated[datetime | None, typer.Option(help="First moment.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Moment after the last.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Rows at most.")] = 50,
) -> None:
    """Print audit rows as JSON lines, newest first."""
    from pydantic import ValidationError

    from hw_server.audit.models import AuditFilter

    try:
        filters = AuditFilter.model_validate(
            {
                "user": user,
                "action": action,
                "resource": resource,
                "outcome": outcome,
                "request_id": request_id,
                "since": since and since.replace(tzinfo=since.tzinfo or UTC),
                "until": until and until.replace(tzinfo=until.tzinfo or UTC),
            }
        )
    except ValidationError as error:
        typer.echo(f"--{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}", err=True)
        raise typer.Exit(2) from None
    for entry in asyncio.run(_entries(filters, limit)):
        typer.echo(entry.model_dump_json())


async def _entries(filters: "AuditFilter", limit: int) -> "list[AuditEntry]":
    from hw_server.audit import repository
    from hw_server.cli.stack import running_environment
    from hw_server.db import Database
    from hw_server.errors import Unavailable
    from hw_server.observability.metrics import Metrics

    db = Database(settings_or_exit(running_environment()).database, Metrics())
    try:
        async with db.read() as connection:
            return await repository.newest(connection, filters, limit)
    except Unavailable as error:
        typer.echo(f"{error.detail}; see `hw status`, and database.url in `hw config show`", err=True)
        raise typer.Exit(1) from None
    finally:
        await db.stop()
