"""What a stack needs so that servers on it serve notes: users with roles, the table, the setting."""

from pathlib import Path

import asyncpg

from hw_server.db import migrations
from hw_server.embedded import Stack
from hw_server.settings import load
from tests.notes.models import NOTES_READ, NOTES_WRITE

SCHEMA = (Path(__file__).parent / "schema.sql").read_text()
USERS: dict[str, tuple[str, ...]] = {
    "alice": (NOTES_READ, NOTES_WRITE),
    "bob": (NOTES_READ,),
    "carol": ("audit:read",),
    "dave": (NOTES_READ, NOTES_WRITE, "audit:read", "sessions:admin"),
}
SETTINGS = {"HW_FEATURES": "tests.notes:FEATURES"}


async def create_table(stack: Stack) -> None:
    """As the owner of the database, as a migration would; with the migrations, which also give the server its rights."""
    connection = await asyncpg.connect(stack.owner()["HW_DATABASE__OWNER_URL"])
    try:
        await connection.execute(SCHEMA)
    finally:
        await connection.close()
    await migrations.upgrade(load(stack.environment() | stack.owner()).database)
