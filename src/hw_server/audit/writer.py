"""Writing audit rows. The row of a change is part of the change's own transaction. All others wait in a bounded queue and are
written in batches; while PostgreSQL is out of reach they are spooled to disk and replayed. No request waits for them."""

import asyncio
import time
from collections import deque
from contextlib import suppress

import structlog

from hw_server.audit.spool import Segment, Spool
from hw_server.db import Connection, Database
from hw_server.errors import DomainError, InvalidInput, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.operations import AuditRow
from hw_server.operations.events import Statement
from hw_server.settings import AuditSettings

log = structlog.get_logger()

COLUMNS = AuditRow._fields
INSERT = (
    f"INSERT INTO user_actions ({', '.join(COLUMNS)}) VALUES ({', '.join(f'${i + 1}' for i in range(len(COLUMNS)))})"  # noqa: S608
)


class AuditWriter:
    """A supervised service, and the platform's `AuditTrail`."""

    name = "audit"

    def __init__(self, settings: AuditSettings, db: Database, metrics: Metrics) -> None:
        self._settings = settings
        self._db = db
        self._queue: deque[AuditRow] = deque()
        self._spool = Spool(settings.spill_dir, settings.spill_max_bytes, metrics)
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

    async def insert(self, connection: Connection, row: AuditRow, also: Statement | None = None) -> None:
        if also is None:
            await connection.execute(INSERT, *row)
        else:
            await connection.execute(f"WITH audit_row AS ({INSERT}) {also.sql}", *row, *also.arguments)
        self._transactional.inc()

    async def write(self, row: AuditRow) -> None:
        try:
            await self._write([row])
        except DomainError as error:
            log.warning("audit_rows_spilled", rows=1, error=error.code)
            if not self._spool.append([row]):
                self._dropped.inc()
                raise Unavailable("the audit trail cannot be written") from error
            self._spilled.inc()

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.flush_interval)
            self._wake.clear()
            if await self.flush():
                await self._replay()

    async def drain(self) -> None:
        """Writes the queue; the producers have stopped."""
        await self.flush()

    async def flush(self) -> bool:
        """Writes the queue to PostgreSQL. Returns False when PostgreSQL refused a batch: that one and all later ones are spooled."""
        written = True
        while self._queue:
            batch = self._next_batch()
            try:
                written = written and await self._try_write(batch)
            except asyncio.CancelledError:
                self._spool_batch(batch)
                while self._queue:
                    self._spool_batch(self._next_batch())
                raise
            if not written:
                self._spool_batch(batch)
        self._depth.set(0)
        return written

    def _next_batch(self) -> list[AuditRow]:
        self._depth.set(len(self._queue))
        return [self._queue.popleft() for _ in range(min(len(self._queue), self._settings.batch_size))]

    async def _try_write(self, batch: list[AuditRow]) -> bool:
        try:
            await self._write(batch)
        except DomainError as error:
            log.warning("audit_rows_spilled", rows=len(batch), error=error.code)
            return False
        except Exception:
            # A defect, such as a missing table: the rows stay on disk until it is fixed.
            log.exception("audit_write_failed", rows=len(batch))
            return False
        return True

    def _spool_batch(self, batch: list[AuditRow]) -> None:
        if self._spool.append(batch):
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
            # One bad row must not fail the others.
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        self._written.inc(len(batch))
        self._flush_time.observe(time.perf_counter() - started)

    async def _replay(self) -> None:
        """Writes spooled segments, each in one transaction, then removes them."""
        while self._spool.waiting:
            segment = None
            try:
                # The connection comes first: while PostgreSQL is away the open segment stays open.
                async with self._db.write() as connection:
                    segment = self._spool.oldest()
                    if segment is None:
                        return
                    written = await self._copy(connection, segment)
            except (InvalidInput, ValueError) as error:
                assert segment is not None
                log.error("audit_segment_refused", segment=segment.name, error=str(error)[:200])
                self._dropped.inc(self._spool.quarantine(segment))
                continue
            except DomainError:
                return
            except Exception:
                log.exception("audit_replay_failed")
                return
            self._spool.remove(segment)
            self._written.inc(written)
            log.info("audit_rows_replayed", rows=written)

    @staticmethod
    async def _copy(connection: Connection, segment: Segment) -> int:
        """Returns the number of rows written. The segment's name is written in the same transaction, so that a file that was
        replayed but not removed is not replayed twice."""
        fresh = await connection.fetchval(
            "INSERT INTO audit_replays (segment) VALUES ($1) ON CONFLICT DO NOTHING RETURNING true", segment.name
        )
        if not fresh:
            return 0
        rows = segment.rows()
        await connection.copy_records_to_table("user_actions", records=rows, columns=COLUMNS)
        return len(rows)
