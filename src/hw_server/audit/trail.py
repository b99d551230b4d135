"""Writing audit rows. A change's row goes into the change's own transaction. All others wait in a bounded queue and are
written in batches; while PostgreSQL is out of reach they go to disk and are replayed. Nothing ever waits for them."""

import asyncio
import time
from collections import deque
from contextlib import suppress

import structlog

from hw_server.audit.spill import Spill
from hw_server.db import Connection, Database
from hw_server.errors import DomainError, InvalidInput
from hw_server.observability.metrics import Metrics
from hw_server.operations import AuditRow
from hw_server.settings import Audit

log = structlog.get_logger()

COLUMNS = AuditRow._fields
INSERT = (
    f"INSERT INTO user_actions ({', '.join(COLUMNS)}) VALUES ({', '.join(f'${i + 1}' for i in range(len(COLUMNS)))})"
)


class Trail:
    """A supervised service, and the platform's `AuditTrail`."""

    name = "audit"

    def __init__(self, settings: Audit, db: Database, metrics: Metrics) -> None:
        self._settings = settings
        self._db = db
        self._queue: deque[AuditRow] = deque()
        self._spill = Spill(settings.spill_dir, settings.spill_max_bytes, metrics)
        self._wake = asyncio.Event()
        self._written = metrics.audit_rows.labels("written")
        self._transactional = metrics.audit_rows.labels("transactional")
        self._dropped = metrics.audit_rows.labels("dropped")
        self._spilled = metrics.audit_rows.labels("spilled")
        self._depth = metrics.audit_queue
        self._flush_time = metrics.audit_flush

    def record(self, row: AuditRow) -> None:
        if len(self._queue) >= self._settings.queue_size:
            self._dropped.inc()
            return
        self._queue.append(row)
        if len(self._queue) >= self._settings.batch_size:
            self._wake.set()

    async def insert(self, connection: Connection, row: AuditRow) -> None:
        await connection.execute(INSERT, *row)
        self._transactional.inc()

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.flush_interval)
            self._wake.clear()
            await self.flush()
            await self._replay()

    async def drain(self) -> None:
        """Writes what waits; the producers have stopped. What PostgreSQL does not take goes to disk."""
        await self.flush()

    async def flush(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._settings.batch_size))]
            self._depth.set(len(self._queue) + len(batch))
            try:
                await self._write(batch)
            except DomainError as error:
                log.warning("audit_rows_spilled", rows=len(batch), error=error.code)
                self._put_aside(batch)
            except asyncio.CancelledError:
                self._put_aside(batch)
                raise
        self._depth.set(0)

    def _put_aside(self, batch: list[AuditRow]) -> None:
        if self._spill.append(batch):
            self._spilled.inc(len(batch))
        else:
            self._dropped.inc(len(batch))

    async def _write(self, batch: list[AuditRow]) -> None:
        started = time.perf_counter()
        try:
            async with self._db.write() as connection:
                await connection.copy_records_to_table("user_actions", records=batch, columns=COLUMNS)
        except InvalidInput:
            if len(batch) == 1:
                log.error("audit_row_refused", action=batch[0].action)
                self._dropped.inc()
                return
            # One row that the table refuses must not take the others along.
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        self._written.inc(len(batch))
        self._flush_time.observe(time.perf_counter() - started)

    async def _replay(self) -> None:
        """Writes a spilled file as one transaction, then removes it."""
        while (segment := self._spill.oldest()) is not None:
            rows = segment.rows()
            try:
                async with self._db.write() as connection:
                    # The segment's name is written with its rows: a file that was replayed but not removed is not written twice.
                    fresh = await connection.fetchval(
                        "INSERT INTO audit_replays (segment) VALUES ($1) ON CONFLICT DO NOTHING RETURNING true",
                        segment.name,
                    )
                    if fresh:
                        await connection.copy_records_to_table("user_actions", records=rows, columns=COLUMNS)
            except DomainError:
                return
            self._spill.remove(segment)
            self._written.inc(len(rows))
            log.info("audit_rows_replayed", rows=len(rows))
