"""`hw serve`: the application alone, as a container runs it."""

import asyncio
import time
from typing import Annotated

import typer

from hw_server.settings import Settings, SettingsError, load

MIGRATION_TIMEOUT = 60.0  # seconds to wait for PostgreSQL at start


def settings_or_exit(environment: dict[str, str] | None = None) -> Settings:
    """Settings from the environment; prints what is wrong with them and exits with 2."""
    try:
        return load(environment)
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(problem, err=True)
        raise typer.Exit(2) from None


def serve(
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; default: http.workers.", min=1, max=256)
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: http.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: http.port.", min=1, max=65535)] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start anew when a Python file changes.")] = False,
) -> None:
    """Run the application until SIGTERM.

    Settings come from HW_* variables (see `hw config show`); beside a native stack that runs, those not set are the stack's.
    """
    from hw_server.cli.reload import Reloader
    from hw_server.cli.stack import running_environment
    from hw_server.observability import logging
    from hw_server.server import Workers, listen, run_worker

    environment = running_environment(required=False, owner=False)
    settings = settings_or_exit(environment)
    chosen = {
        name: value for name, value in (("workers", workers), ("host", host), ("port", port)) if value is not None
    }
    settings = settings.model_copy(update={"http": settings.http.model_copy(update=chosen)})
    if settings.database.owner_url is not None:
        typer.echo("database.owner_url: is for `hw migrate`; a serving process must not hold it", err=True)
        raise typer.Exit(2)
    if reload and settings.http.workers > 1:
        typer.echo("--reload runs one worker; leave --workers out", err=True)
        raise typer.Exit(2)
    logging.configure(settings.log)
    try:
        bound = listen(settings.http.host, settings.http.port)
    except OSError as error:
        typer.echo(
            f"cannot listen on {settings.http.host}:{settings.http.port}: {error.strerror}; "
            "stop what uses the port (`hw down hw-server` stops the one of `hw up`) or set --port",
            err=True,
        )
        raise typer.Exit(1) from None
    if reload:
        raise typer.Exit(Reloader(settings, bound, environment, _migrate).run())
    if settings.database.migrate_on_start:
        _migrate(settings)
    if settings.http.workers > 1:
        raise typer.Exit(Workers(settings, bound, environment).run())
    raise typer.Exit(run_worker(settings, bound))


def _migrate(settings: Settings) -> None:
    """Applies migrations, waiting while PostgreSQL is away; prints one line and exits with 1 where they fail."""
    from hw_server.db.revisions import MigrationError, all_applied

    if asyncio.run(all_applied(settings.database)):
        return
    import asyncpg
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    from hw_server.db import migrations
    from hw_server.db.errors import is_transient

    deadline = time.monotonic() + MIGRATION_TIMEOUT
    while True:
        try:
            asyncio.run(migrations.upgrade(settings.database))
        except (OSError, SQLAlchemyError, CommandError, MigrationError) as error:
            if time.monotonic() > deadline or not is_transient(error):
                reason = error.driver_exception if isinstance(error, DBAPIError) else error
                if isinstance(reason, asyncpg.InsufficientPrivilegeError):
                    reason = Exception(f"{reason}; run `hw migrate up` as the owner of the tables first")
                first_line = (str(reason) or type(reason).__name__).splitlines()[0]
                typer.echo(f"migrations failed: {first_line}", err=True)
                raise typer.Exit(1) from None
            time.sleep(1)
        else:
            return
