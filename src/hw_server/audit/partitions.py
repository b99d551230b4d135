"""Monthly partitions of `user_actions`: coming ones are created, those past the retention are dropped, by functions that run
with the rights of the tables' owner."""

import asyncio

import structlog

from hw_server.db import Connection, Database
from hw_server.errors import DomainError

log = structlog.get_logger()

INTERVAL = 3600.0  # seconds
RETRY_INTERVAL = 10.0  # seconds
ADVISORY_LOCK = 0x6877_7061  # "hwpa"


class Partitions:
    """A supervised service. Every process runs it; an advisory lock lets one at a time work, and the others find nothing to do."""

    name = "audit-partitions"

    def __init__(self, retention_months: int, db: Database) -> None:
        self._retention = retention_months
        self._db = db

    async def run(self) -> None:
        while True:
            pause = RETRY_INTERVAL
            try:
                async with self._db.write() as connection:
                    await maintain(connection, self._retention)
                pause = INTERVAL
            except DomainError as error:
                log.warning("audit_partitions_failed", error=error.detail)
            except Exception as error:
                # Refused, such as a retention below the owner's least: the trail goes on with the partitions it has.
                log.error("audit_partitions_failed", error=repr(error)[:300])
            await asyncio.sleep(pause)


async def maintain(connection: Connection, retention_months: int) -> None:
    """Creates the partitions of this month and the next two, drops those older than the retention."""
    # A queued exclusive lock blocks later statements on the table: give up after 1 s and retry.
    await connection.execute("SET LOCAL lock_timeout = '1s'")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
    await connection.fetch("SELECT audit_create_partitions()")
    for row in await connection.fetch("SELECT audit_drop_partitions($1) AS name", retention_months):
        log.info("audit_partition_dropped", partition=row["name"])
