"""`hw migrate`: up, down, status, new."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from hw_server.cli.serve import settings_or_exit
from hw_server.cli.stack import running_environment

app = typer.Typer(help="Apply, revert, list and write database migrations.", no_args_is_help=True)


@app.command()
def up(revision: Annotated[str, typer.Argument(help="Last migration to apply.")] = "head") -> None:
    """Apply pending migrations; several processes may do so at once."""
    from hw_server.db import migrations

    _run(migrations.upgrade(settings_or_exit(running_environment()).database, revision))
    typer.echo("the database is up to date")


@app.command()
def down(
    revision: Annotated[str, typer.Argument(help="Migration to go back to; -1 reverts one.")] = "-1",
) -> None:
    """Revert migrations; data of dropped tables is gone."""
    from hw_server.db import migrations

    _run(migrations.downgrade(settings_or_exit(running_environment()).database, revision))
    typer.echo("reverted")


@app.command()
def status() -> None:
    """List migrations and whether each is applied; exit code 1 where one is pending."""
    from hw_server.db import migrations

    revisions = _run(migrations.status(settings_or_exit(running_environment()).database))
    for revision, message, applied in revisions:
        typer.echo(f"{'applied' if applied else 'pending'}  {revision}  {message}")
    raise typer.Exit(0 if all(applied for _, _, applied in revisions) else 1)


@app.command()
def new(message: Annotated[str, typer.Argument(help="What it does, in a few words.")]) -> None:
    """Write an empty migration and print its path."""
    from hw_server.db import migrations

    typer.echo(migrations.new(message))


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return asyncio.run(work)
    except (OSError, SQLAlchemyError, TimeoutError) as error:
        typer.echo(f"the database refused: {str(error).splitlines()[0]}", err=True)
        raise typer.Exit(1) from None
