"""`hw backup`, `hw restore`: every database with its roles, by PostgreSQL's own programs."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from hw_server.cli.serve import settings_or_exit
from hw_server.cli.stack import running_environment
from hw_server.settings import BackupSettings, Settings

PAUSE = 300.0  # seconds before a failed backup is tried again
NAME = re.compile(r"\d{8}T\d{6}Z")
# Missing roles are created; passwords come from the deployment's secrets, not from the dump.
ROLES = ("pg_dumpall", "--globals-only", "--no-role-passwords")
CREATE_ROLE = re.compile(r"^CREATE ROLE (.+);$", re.M)
# What pg_dump writes for newer servers and older ones refuse.
NEWER = re.compile(rb"^SET transaction_timeout = 0;\n| LOCALE_PROVIDER = libc")


class BackupError(Exception):
    """A backup or a restore that did not come to its end; the message is for the operator."""


def backup(
    schedule: Annotated[
        bool, typer.Option("--schedule", help="Go on: one every backup.interval_hours, metrics on backup.metrics_port.")
    ] = False,
) -> None:
    """Write all databases and roles into a new folder below backup.dir; copy it to backup.target."""
    settings = settings_or_exit(running_environment())
    if schedule:
        _serve(settings)
    try:
        typer.echo(_backup(settings))
    except (BackupError, OSError) as error:
        typer.echo(f"the backup failed: {error}", err=True)
        raise typer.Exit(1) from None


def restore(
    folder: Annotated[Path, typer.Argument(help="Folder that `hw backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Also where the databases hold tables.")] = False,
) -> None:
    """Make the databases of a backup anew, while nothing is connected to them. Topics begin new epochs."""
    settings = settings_or_exit(running_environment())
    try:
        _restore(settings, folder, replace=replace)
    except (BackupError, OSError) as error:
        typer.echo(f"the restore failed: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo("restored")


def _serve(settings: Settings) -> None:
    from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

    registry = CollectorRegistry()
    failures = Counter("backup_failures_total", "Backups that failed.", registry=registry)
    newest = Gauge("backup_last_success_timestamp_seconds", "Time of the last complete backup.", registry=registry)
    newest.set_function(lambda: _newest(settings.backup))
    size = Gauge("backup_size_bytes", "Bytes of all backups kept.", registry=registry)
    size.set_function(lambda: float(sum(file.stat().st_size for file in settings.backup.dir.glob("*/*"))))
    start_http_server(settings.backup.metrics_port, registry=registry)
    # PID 1 of a container ignores signals without a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        wait = _newest(settings.backup) + settings.backup.interval_hours * 3600 - time.time()
        if wait > 0:
            time.sleep(wait)
            continue
        try:
            typer.echo(f"wrote {_backup(settings)}")
        except (BackupError, OSError) as error:
            typer.echo(f"the backup failed: {error}", err=True)
            failures.inc()
            time.sleep(PAUSE)


def _newest(settings: BackupSettings) -> float:
    """Time of the last complete backup; 0 where there is none."""
    complete = _complete(settings)
    return datetime.strptime(complete[-1].name, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp() if complete else 0.0


def _complete(settings: BackupSettings) -> list[Path]:
    return sorted(path for path in settings.dir.glob("*") if NAME.fullmatch(path.name))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One backup at a time writes into a folder, and may clear away what an interrupted one has left."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"another one is being written to {folder}; wait for its end") from None
        yield


def _backup(settings: Settings) -> Path:
    """The folder gets its final name once it is complete and copied to `backup.target`."""
    own = settings.backup
    with _alone(own.dir):
        path = own.dir / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        partial = path.with_suffix(".partial")
        for left in own.dir.glob("*.partial"):
            shutil.rmtree(left)
        partial.mkdir(mode=0o700)
        postgres = _Postgres(own)
        (partial / "roles.sql").write_bytes(postgres.run(*ROLES))
        for database in own.databases or postgres.lines(DATABASES):
            postgres.run("pg_dump", "-Fc", "-f", str(partial / f"{database}.dump"), database=database)
        if own.target:
            _run(["rclone", "copy", str(partial), f"{own.target.rstrip('/')}/{path.name}"])
        partial.rename(path)
        for old in _complete(own)[: -own.keep]:
            shutil.rmtree(old)
    return path


def _restore(settings: Settings, folder: Path, *, replace: bool) -> None:
    dumps = sorted(folder.glob("*.dump"))
    if not dumps:
        raise BackupError(f"{folder} holds no backup")
    postgres = _Postgres(settings.backup)
    existing = postgres.lines("SELECT datname FROM pg_database")
    for dump in dumps:
        if not replace and dump.stem in existing and postgres.lines(TABLES, dump.stem) != ["0"]:
            raise BackupError(f"the database {dump.stem} holds tables; --replace drops them")
    # One after the other: an interrupted restore is begun again with --replace.
    postgres.script(CREATE_ROLE.sub(_create_role, (folder / "roles.sql").read_text()).encode())
    for dump in dumps:
        postgres.restore(dump)
    _forget_topics(settings)


DATABASES = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres'"
TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"


def _create_role(match: re.Match[str]) -> str:
    """Only where there is none of this name."""
    name = match.group(1).removeprefix('"').removesuffix('"').replace('""', '"').replace("'", "''")
    missing = f"NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}')"
    return f"DO $create$ BEGIN IF {missing} THEN {match.group(0)} END IF; END $create$;"


def _forget_topics(settings: Settings) -> None:
    """Deletes what Redis holds of topics (offsets, fences, published keys): it does not match the restored database."""
    import redis

    try:
        with redis.Redis.from_url(
            settings.redis.url.get_secret_value(),
            db=settings.redis.cache_db,
            password=settings.redis.password.get_secret_value() if settings.redis.password else None,
        ) as client:
            for key in client.scan_iter(f"{settings.redis.key_prefix}topic*", count=1000):
                client.delete(key)
    except redis.RedisError as error:
        raise BackupError(
            f"the databases are restored, but Redis is out of reach ({error}): empty its database "
            f"{settings.redis.cache_db} before a server starts"
        ) from None


class _Postgres:
    """PostgreSQL's programs as the role of backup.url."""

    def __init__(self, settings: BackupSettings) -> None:
        if settings.url is None:
            raise BackupError("backup.url is not set (HW_BACKUP__URL): the address of a role that may read everything")
        self._url = settings.url.get_secret_value()
        self._environment = dict(os.environ)
        if settings.password is not None:
            self._environment["PGPASSWORD"] = settings.password.get_secret_value()

    def run(self, program: str, *arguments: str, database: str | None = None) -> bytes:
        return _run([program, *arguments, "-d", self._address(database)], self._environment)

    def lines(self, query: str, database: str | None = None) -> list[str]:
        return self.run("psql", "-XtAc", query, database=database).decode().splitlines()

    def script(self, sql: bytes) -> None:
        _run(self._psql(), self._environment, sql)

    def restore(self, dump: Path) -> None:
        """As SQL through psql: pg_restore itself goes on after an error."""
        writes = ["pg_restore", "--create", "--clean", "--if-exists", "-f", "-", str(dump)]
        with (
            subprocess.Popen(writes, stdout=subprocess.PIPE) as source,  # noqa: S603
            subprocess.Popen(  # noqa: S603
                self._psql(), env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
            ) as psql,
        ):
            assert source.stdout is not None
            assert psql.stdin is not None
            try:
                for line in _for_older_servers(source.stdout):
                    psql.stdin.write(line)
            except BrokenPipeError:
                source.kill()
            else:
                psql.stdin.close()
        if source.returncode or psql.returncode:
            raise BackupError(f"{dump.name} could not be restored; is a server still connected?")

    def _psql(self) -> list[str]:
        return ["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", self._url]

    def _address(self, database: str | None) -> str:
        if database is None:
            return self._url
        base, _, query = self._url.partition("?")
        head, _, _ = base.rpartition("/")
        return f"{head}/{database}" + (f"?{query}" if query else "")


def _for_older_servers(lines: Any) -> Iterator[bytes]:
    """Statements that a newer pg_dump writes are left out; they stand before the first row of data."""
    data = False
    for line in lines:
        data = data or line.startswith(b"COPY ")
        yield line if data else NEWER.sub(b"", line)


def _run(command: list[str], environment: dict[str, str] | None = None, stdin: bytes = b"") -> bytes:
    try:
        done = subprocess.run(  # noqa: S603
            command, env=environment, input=stdin, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise BackupError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise BackupError(f"{command[0]}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout
