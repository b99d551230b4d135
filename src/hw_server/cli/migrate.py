"""`hw migrate`: up, down, status, new, heads, merge, stamp, check."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer

from hw_server.cli.serve import settings_or_exit
from hw_server.cli.stack import running_environment

T = TypeVar("T")
app = typer.Typer(help="Apply, revert, list, write, join and check database migrations.", no_args_is_help=True)


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
    """Write an empty migration and print its path; until it is filled in, nothing is applied."""
    from hw_server.db import revisions

    typer.echo(_written(lambda: revisions.new(message)))


@app.command()
def heads() -> None:
    """List the revisions that no other one stands on; exit code 1 where there are several."""
    from hw_server.db import revisions

    tops = _written(revisions.heads)
    for revision in tops:
        typer.echo(revision)
    if len(tops) > 1:
        typer.echo("`hw migrate merge` joins them", err=True)
    raise typer.Exit(0 if len(tops) < 2 else 1)


@app.command()
def merge(message: Annotated[str, typer.Argument(help="What it joins, in a few words.")] = "merge") -> None:
    """Write a migration that joins the heads, where two people wrote one at the same time, and print its path."""
    from hw_server.db import revisions

    typer.echo(_written(lambda: revisions.merge(message)))


@app.command()
def stamp(revision: Annotated[str, typer.Argument(help="Migration that the database is taken to be at.")]) -> None:
    """Note in the database which migration it is at, and run nothing."""
    from hw_server.db import migrations

    _run(migrations.stamp(settings_or_exit(running_environment()).database, revision))
    typer.echo(f"the database is taken to be at {revision}")


@app.command()
def check() -> None:
    """Look through the files, without a database; print each problem and exit with 1 where there is one.

    A problem is also what the release before, which serves beside the new one during a rollout, does not survive.
    """
    from hw_server.db import revisions

    files = _written(revisions.files)
    lines = [*revisions.problems(files), *revisions.contracting(files)]
    for line in lines:
        typer.echo(line, err=True)
    if not lines:
        typer.echo("the migrations are in order")
    raise typer.Exit(1 if lines else 0)


def _written(work: Callable[[], T]) -> T:
    """Runs work on the files only; prints one line and exits with 1 where they are wrong."""
    from hw_server.db.revisions import MigrationError

    try:
        return work()
    except (OSError, MigrationError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs work on the database; prints one line and exits with 1 where it or the migrations refuse."""
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    from hw_server.db.revisions import MigrationError

    try:
        return asyncio.run(work)
    except (MigrationError, CommandError) as error:
        typer.echo(f"migrations failed: {_first_line(error)}", err=True)
    except (OSError, SQLAlchemyError, TimeoutError) as error:
        reason = error.driver_exception if isinstance(error, DBAPIError) else error
        typer.echo(f"the database refused: {_first_line(reason)}", err=True)
    raise typer.Exit(1)


def _first_line(error: BaseException | None) -> str:
    """Some errors have no text, as `TimeoutError`; their name says what they are."""
    return (str(error) or type(error).__name__).splitlines()[0]
