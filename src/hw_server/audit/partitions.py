"""Monthly partitions of `user_actions`: coming ones are created, those past the retention are dropped."""

import asyncio
from datetime import UTC, date, datetime

import structlog

from hw_server.db import Connection, Database
from hw_server.errors import DomainError

log = structlog.get_logger()

INTERVAL = 3600.0  # seconds
ADVISORY_LOCK = 0x6877_7061  # "hwpa"
PREFIX = "user_actions_y"


class Partitions:
    """A supervised service. Every process runs it; an advisory lock lets one at a time work, and the others find nothing to do."""

    name = "audit-partitions"

    def __init__(self, retention_months: int, db: Database) -> None:
        self._retention = retention_months
        self._db = db

    async def run(self) -> None:
        while True:
            try:
                async with self._db.write() as connection:
                    await maintain(connection, self._retention, datetime.now(UTC).date())
                pause = INTERVAL
            except DomainError as error:
                log.warning("audit_partitions_failed", error=error.detail)
                pause = 10.0
            await asyncio.sleep(pause)


async def maintain(connection: Connection, retention_months: int, today: date) -> None:
    """Creates the partitions of this month and the next two, drops those older than the retention."""
    # A queued exclusive lock blocks later statements on the table: give up after 1 s and retry.
    await connection.execute("SET LOCAL lock_timeout = '1s'")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
    existing = {
        row["name"]
        for row in await connection.fetch(
            "SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = 'user_actions'::regclass"
        )
    }
    for months in range(3):
        first, end = _month(today, months), _month(today, months + 1)
        name = f"{PREFIX}{first:%Ym%m}"
        if name not in existing:
            await _create(connection, name, first, end)
    oldest = f"{PREFIX}{_month(today, -retention_months):%Ym%m}"
    for name in sorted(existing):
        if name.startswith(PREFIX) and name < oldest:
            await connection.execute(f"DROP TABLE {name}")
            log.info("audit_partition_dropped", partition=name)


async def _create(connection: Connection, name: str, first: date, end: date) -> None:
    """Rows of that month that are in the default partition are moved to the new one."""
    await connection.execute(f"CREATE TABLE {name} (LIKE user_actions INCLUDING ALL)")
    await connection.execute(
        f"WITH moved AS (DELETE FROM user_actions_default WHERE occurred_at >= '{first}+00' AND occurred_at < '{end}+00' "  # noqa: S608
        f"RETURNING *) INSERT INTO {name} SELECT * FROM moved"
    )
    await connection.execute(
        f"ALTER TABLE user_actions ATTACH PARTITION {name} FOR VALUES FROM ('{first}+00') TO ('{end}+00')"
    )


def _month(day: date, ahead: int) -> date:
    index = day.year * 12 + day.month - 1 + ahead
    return date(index // 12, index % 12 + 1, 1)
