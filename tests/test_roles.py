"""Two roles in the database: what the server may not do to its own audit trail, and how they come to be."""

import asyncio
import re
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import asyncpg
import pytest

from hw_server.embedded import Stack
from tests.conftest import PROJECT, Running, Serve
from tests.test_pool import start_in_vain
from tests.test_settings import hw

FORBIDDEN = [
    "UPDATE user_actions SET action = 'x'",
    "DELETE FROM user_actions",
    "TRUNCATE user_actions",
    "DELETE FROM user_actions_default",
    "INSERT INTO user_actions_default SELECT * FROM user_actions",
    "DROP TABLE user_actions",
    "ALTER TABLE user_actions DISABLE TRIGGER ALL",
    "CREATE OR REPLACE FUNCTION audit_min_months() RETURNS integer LANGUAGE sql AS 'SELECT 0'",
    "CREATE TABLE mine (id int)",
    "DELETE FROM alembic_version",
]


@pytest.fixture
async def serving(stack: Stack, server: Running) -> AsyncIterator[asyncpg.Connection]:
    """A connection with the rights of the server."""
    connection = await asyncpg.connect(stack.environment()["HW_DATABASE__URL"])
    yield connection
    await connection.close()


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_the_server_may_not(serving: asyncpg.Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await serving.execute(statement)


async def test_no_partition_leads_around_the_trail(serving: asyncpg.Connection) -> None:
    names = await serving.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'user_actions'::regclass"
    )
    assert len(names) == 4
    for name in (row["name"] for row in names):
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"):
            assert not await serving.fetchval("SELECT has_table_privilege($1, $2)", name, right)


async def test_functions_of_the_owner_are_for_the_server_alone(serving: asyncpg.Connection) -> None:
    functions = await serving.fetch(
        "SELECT proconfig, has_function_privilege('hw', oid, 'EXECUTE') AS server, "
        "has_function_privilege('keycloak', oid, 'EXECUTE') AS others FROM pg_proc WHERE prosecdef"
    )
    assert len(functions) == 2
    for function in functions:
        assert "search_path=pg_catalog, pg_temp" in function["proconfig"]
        assert (function["server"], function["others"]) == (True, False)


@dataclass
class Fresh:
    """An empty database with the addresses that lead to it, by role."""

    server: str
    owner: str
    superuser: str


@pytest.fixture
async def fresh(stack: Stack) -> AsyncIterator[Callable[[str], object]]:
    admin = await asyncpg.connect(host="127.0.0.1", port=stack.ports.postgres, user="postgres", password="postgres")
    made: list[str] = []

    async def make(owner: str) -> Fresh:
        made.append(f"roles_{uuid.uuid4().hex}")
        await admin.execute(f"CREATE DATABASE {made[-1]} OWNER {owner}")
        at = f"@127.0.0.1:{stack.ports.postgres}/{made[-1]}"
        return Fresh(
            *(f"postgresql://{who}{at}" for who in ("hw:hw-dev", "hw_owner:hw-owner-dev", "postgres:postgres"))
        )

    yield make
    for name in made:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def migrate(fresh: Fresh) -> subprocess.CompletedProcess[str]:
    addresses = {"HW_DATABASE__URL": fresh.server, "HW_DATABASE__OWNER_URL": fresh.owner}
    return await asyncio.to_thread(hw, "migrate", "up", **addresses)


async def may_delete(fresh: Fresh) -> bool:
    connection = await asyncpg.connect(fresh.server)
    try:
        return bool(await connection.fetchval("SELECT has_table_privilege('user_actions', 'DELETE')"))
    finally:
        await connection.close()


async def test_migrations_are_the_owner_s(stack: Stack, serve: Serve, fresh: Callable[..., object]) -> None:
    database = await fresh("hw_owner")  # type: ignore[misc]
    refused = await asyncio.to_thread(start_in_vain, stack, HW_DATABASE__URL=database.server)
    assert refused.returncode == 1
    assert "run `hw migrate up` as the owner" in refused.stderr
    assert (await migrate(database)).stdout == "the database is up to date\n"
    with serve(HW_DATABASE__URL=database.server) as running:
        async with running.client() as client:
            assert (await client.get("/health")).status_code == 200
    assert not await may_delete(database)


async def test_one_role_is_enough(serve: Serve, fresh: Callable[..., object]) -> None:
    database = await fresh("hw")  # type: ignore[misc]
    with serve(HW_DATABASE__URL=database.server):
        assert await may_delete(database)


def documented(database: Fresh) -> str:
    """What the operator's page says, for this database; the role is there already, Grafana's may not be."""
    page = (PROJECT / "docs/deployment/operations.md").read_text()
    [sql] = re.findall(r"<<'SQL'\nCREATE ROLE hw_owner.*?\n(.*?)SQL\n", page, re.S)
    grafana = "DO $$ BEGIN CREATE ROLE grafana; EXCEPTION WHEN duplicate_object THEN NULL; END $$;\n"
    return grafana + str(sql).replace("DATABASE hw_db", f"DATABASE {database.server.rsplit('/', 1)[1]}")


async def test_an_installation_of_one_role_becomes_one_of_two(serve: Serve, fresh: Callable[..., object]) -> None:
    database = await fresh("hw")  # type: ignore[misc]
    with serve(HW_DATABASE__URL=database.server):
        assert await may_delete(database)
    superuser = await asyncpg.connect(database.superuser)
    await superuser.execute(documented(database))
    await superuser.close()
    assert (await migrate(database)).returncode == 0
    with serve(HW_DATABASE__URL=database.server) as running:
        async with running.client() as client:
            assert (await client.get("/health")).status_code == 200
    assert not await may_delete(database)


def test_the_serving_process_refuses_the_owner_s_secret() -> None:
    result = hw("serve", HW_DATABASE__OWNER_URL="postgresql://hw_owner:x@127.0.0.1:1/hw_db")
    assert (result.returncode, result.stderr.partition(":")[0]) == (2, "database.owner_url")


async def test_a_right_given_by_a_migration_stays(fresh: Callable[..., object]) -> None:
    database = await fresh("hw_owner")  # type: ignore[misc]
    await migrate(database)
    owner = await asyncpg.connect(database.owner)
    await owner.execute("CREATE TABLE ledger (id int); GRANT SELECT ON ledger TO hw; CREATE TABLE plain (id int)")
    assert (await migrate(database)).returncode == 0
    rights = [
        await owner.fetchval("SELECT has_table_privilege('hw', $1, 'DELETE')", name) for name in ("ledger", "plain")
    ]
    await owner.close()
    assert rights == [False, True]
