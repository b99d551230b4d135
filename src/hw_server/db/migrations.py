"""Alembic, called from code. One process at a time applies migrations: an advisory lock makes the others wait."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, make_url, pool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from hw_server.db.roles import grant
from hw_server.settings import DatabaseSettings

ADVISORY_LOCK = 0x6877_6D69  # "hwmi"


def folder() -> Path:
    """`migrations/` beside the source tree, or in the working directory of an installed server."""
    for candidate in (Path(__file__).resolve().parents[3] / "migrations", Path.cwd() / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise FileNotFoundError("migrations/ not found; run from the project's folder")


def configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder()))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(year)d%%(month).2d%%(day).2d%%(hour).2d%%(minute).2d_%%(slug)s")
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
    PostgreSQL away or a statement refused, and alembic's CommandError for a revision that has no file."""
    await _locked(settings, lambda config: command.upgrade(config, revision))


async def downgrade(settings: DatabaseSettings, revision: str = "-1") -> None:
    """Reverts migrations back to `revision`, or so many; raises what `upgrade` raises."""
    await _locked(settings, lambda config: command.downgrade(config, revision))


async def status(settings: DatabaseSettings) -> list[tuple[str, str, bool]]:
    """`(revision, message, applied)`, oldest first; raises what `upgrade` raises."""
    script = ScriptDirectory.from_config(configuration())
    engine = _engine(settings)
    try:
        async with engine.connect() as connection:
            heads = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_heads())
    finally:
        await engine.dispose()
    applied = {item.revision for head in heads for item in script.iterate_revisions(head, "base")}
    return [(item.revision, item.doc, item.revision in applied) for item in reversed(list(script.walk_revisions()))]


def new(message: str) -> Path:
    """Writes an empty migration and returns its path."""
    created = command.revision(configuration(), message=message)
    script = created[0] if isinstance(created, list) else created
    assert script is not None
    return Path(script.path)


def _engine(settings: DatabaseSettings) -> AsyncEngine:
    # asyncpg would wait a minute for a host that does not answer.
    timeout = {"timeout": settings.connect_timeout}
    return create_async_engine(database_url(settings), poolclass=pool.NullPool, connect_args=timeout)


async def _locked(settings: DatabaseSettings, run: Callable[[Config], None]) -> None:
    def inside(connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        config = configuration()
        config.attributes["connection"] = connection
        run(config)
        role = make_url(settings.url.get_secret_value()).username
        if settings.owner_url is not None and role is not None:
            grant(connection, role)

    engine = _engine(settings)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(inside)
    finally:
        await engine.dispose()
