"""Alembic, called from code. One process at a time applies migrations: an advisory lock makes the others wait."""

from collections.abc import Callable
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, make_url, pool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from hw_server.db.revisions import MigrationError, check, files, folder, heads
from hw_server.db.roles import grant
from hw_server.settings import DatabaseSettings

ADVISORY_LOCK = 0x6877_6D69  # "hwmi"


def configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder()))
    config.set_main_option("path_separator", "os")
    return config


def database_url(settings: DatabaseSettings) -> URL:
    """Of the owner where one is set, else of the one role there is."""
    address, password = settings.owner_url, settings.owner_password
    if address is None:
        address, password = settings.url, settings.password
    url = make_url(address.get_secret_value()).set(drivername="postgresql+asyncpg")
    return url if password is None else url.set(password=password.get_secret_value())


async def upgrade(settings: DatabaseSettings, revision: str = "head") -> None:
    """Applies migrations up to `revision`, all in one transaction. Raises OSError or SQLAlchemy's DBAPIError with
    PostgreSQL away or a statement refused, `MigrationError` where the files or the database's revision are wrong, and
    another CommandError of alembic for a `revision` that has no file."""
    check()
    await _locked(settings, lambda config: command.upgrade(config, revision))


async def downgrade(settings: DatabaseSettings, revision: str = "-1") -> None:
    """Reverts migrations back to `revision`, or so many; raises what `upgrade` raises."""
    check()
    await _locked(settings, lambda config: command.downgrade(config, revision))


async def stamp(settings: DatabaseSettings, revision: str) -> None:
    """Notes that the database is at `revision`, and runs nothing; raises what `upgrade` raises."""
    await _locked(settings, lambda config: command.stamp(config, revision, purge=True), known=False)


async def status(settings: DatabaseSettings) -> list[tuple[str, str, bool]]:
    """`(revision, message, applied)`, oldest first; raises what `upgrade` raises."""
    check()
    script = ScriptDirectory.from_config(configuration())
    engine = _engine(settings)
    try:
        async with engine.connect() as connection:
            at = await connection.run_sync(_revisions)
    finally:
        await engine.dispose()
    applied = {item.revision for head in at for item in script.iterate_revisions(head, "base")}
    return [(item.revision, item.doc, item.revision in applied) for item in reversed(list(script.walk_revisions()))]


def _revisions(connection: Connection) -> tuple[str, ...]:
    """Where the database is; raises `MigrationError` for a revision without a file."""
    at: Any = MigrationContext.configure(connection).get_current_heads()
    known = {file.revision for file in files()}
    for revision in at:
        if revision not in known:
            raise MigrationError(
                f"the database is at revision {revision}, which no file in migrations/versions has: get the code that has "
                f"it, or `hw migrate stamp {next(iter(heads()), 'base')}` where the tables are right as they are"
            )
    return tuple(at)


def _engine(settings: DatabaseSettings) -> AsyncEngine:
    # asyncpg would wait a minute for a host that does not answer.
    timeout = {"timeout": settings.connect_timeout}
    return create_async_engine(database_url(settings), poolclass=pool.NullPool, connect_args=timeout)


async def _locked(settings: DatabaseSettings, run: Callable[[Config], None], *, known: bool = True) -> None:
    def migrate(connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        if known:
            _revisions(connection)
        config = configuration()
        config.attributes["connection"] = connection
        run(config)
        role = make_url(settings.url.get_secret_value()).username
        if settings.owner_url is not None and role is not None:
            grant(connection, role)

    engine = _engine(settings)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()
