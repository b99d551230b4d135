"""Writing audit rows. The row of a change is part of the change's own transaction. All others wait in a bounded queue and are
written in batches; while PostgreSQL is out of reach they are spooled to disk and replayed. No request waits for them."""

import asyncio
import time
from collections import deque
from contextlib import suppress

import structlog

from hw_server.audit.spool import Spool, segment_name
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
# Records the batch's name; deletes names whose COMMIT was confirmed.
RECORD = """WITH settled AS (DELETE FROM audit_replays WHERE segment = ANY($2))
            INSERT INTO audit_replays (segment) VALUES ($1) ON CONFLICT DO NOTHING RETURNING true"""


class Batch:
    """Rows that are written together, with their `name` in the same transaction. Where its COMMIT was not answered
    (`committing`) nobody knows whether they are there: then they are spooled as a segment of that name, whose replay writes
    nothing that is there already."""

    __slots__ = ("committing", "name", "rows")

    def __init__(self, rows: list[AuditRow]) -> None:
        self.rows = rows
        self.name = segment_name()
        self.committing = False


class AuditWriter:
    """A supervised service, and the platform's `AuditTrail`."""

    name = "audit"

    def __init__(self, settings: AuditSettings, db: Database, metrics: Metrics) -> None:
        self._settings = settings
        self._db = db
        self._queue: deque[AuditRow] = deque()
        self._parts: list[Batch] = []  # halves of batches that PostgreSQL refused
        self._settled: list[str] = []  # names of batches whose COMMIT was confirmed
        self._spool = Spool(settings.spill_dir, settings.spill_max_bytes, metrics)
        self._wake = asyncio.Event()
        self._written = metrics.audit_rows.labels("written")
        self._transactional = metrics.audit_rows.labels("transactional")
        self._dropped = metrics.audit_rows.labels("dropped")
        self._spooled = metrics.audit_rows.labels("spilled")
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
            await connection.execute_ahead(INSERT, *row)
        else:
            await connection.execute_ahead(f"WITH audit_row AS ({INSERT}) {also.sql}", *row, *also.arguments)
        self._transactional.inc()

    async def write(self, row: AuditRow) -> None:
        batch = Batch([row])
        try:
            await self._write(batch)
        except asyncio.CancelledError:
            await self._spool_batch(batch)
            raise
        except Exception as error:
            code = error.code if isinstance(error, DomainError) else repr(error)[:200]
            log.warning("audit_rows_spilled", rows=1, error=code)
            if not await self._spool_batch(batch):
                raise Unavailable("the audit trail cannot be written") from error

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
        while self._queue or self._parts:
            batch = self._next_batch()
            try:
                written = written and await self._try_write(batch)
            except asyncio.CancelledError:
                await self._spool_batch(batch)
                while self._queue or self._parts:
                    await self._spool_batch(self._next_batch())
                raise
            if not written:
                await self._spool_batch(batch)
        self._depth.set(0)
        return written

    def _next_batch(self) -> Batch:
        if self._parts:
            return self._parts.pop()
        self._depth.set(len(self._queue))
        return Batch([self._queue.popleft() for _ in range(min(len(self._queue), self._settings.batch_size))])

    async def _try_write(self, batch: Batch) -> bool:
        try:
            await self._write(batch)
        except (InvalidInput, UnicodeError):
            # One bad row must not fail the others.
            if len(batch.rows) == 1:
                log.error("audit_row_refused", action=batch.rows[0].action)
                self._dropped.inc()
            else:
                middle = len(batch.rows) // 2
                self._parts += (Batch(batch.rows[middle:]), Batch(batch.rows[:middle]))
        except DomainError as error:
            log.warning("audit_rows_spilled", rows=len(batch.rows), error=error.code)
            return False
        except Exception:
            # A defect, such as a missing table: the rows stay on disk until it is fixed.
            log.exception("audit_write_failed", rows=len(batch.rows))
            return False
        return True

    async def _spool_batch(self, batch: Batch) -> bool:
        """Returns False where a row is lost."""
        kept = await self._spool.append(batch.rows, batch.name if batch.committing else None)
        self._spooled.inc(kept)
        self._dropped.inc(len(batch.rows) - kept)
        return kept == len(batch.rows)

    async def _write(self, batch: Batch) -> None:
        started, settled = time.perf_counter(), self._settled[:]
        async with self._db.write() as connection:
            await connection.execute(RECORD, batch.name, settled)
            await connection.copy_records_to_table("user_actions", records=batch.rows, columns=COLUMNS)
            batch.committing = True
        self._settled = [name for name in self._settled if name not in settled]
        self._settled.append(batch.name)
        self._written.inc(len(batch.rows))
        self._flush_time.observe(time.perf_counter() - started)

    async def _replay(self) -> None:
        """Writes spooled segments, each in one transaction, then removes them. The segment's name is written in the same
        transaction, so that a file that was replayed but not removed is not replayed twice."""
        while await self._spool.waiting():
            segment = None
            try:
                # The connection comes first: while PostgreSQL is away the open segment stays open.
                async with self._db.write() as connection:
                    taken = await self._spool.oldest()
                    if taken is None:
                        return
                    segment, rows = taken
                    if isinstance(rows, ValueError):
                        raise rows
                    written = await self._copy(connection, segment.name, rows)
            except (InvalidInput, ValueError) as error:
                assert segment is not None
                log.error("audit_segment_quarantined", segment=segment.name, error=str(error)[:200])
                self._dropped.inc(await self._spool.quarantine(segment))
                continue
            except DomainError:
                return
            except Exception:
                log.exception("audit_replay_failed")
                return
            await self._spool.remove(segment)
            self._settled.append(segment.name)
            self._written.inc(written)
            log.info("audit_rows_replayed", rows=written)

    @staticmethod
    async def _copy(connection: Connection, name: str, rows: list[AuditRow]) -> int:
        """Returns the number of rows written."""
        if not await connection.fetchval(RECORD, name, []):
            return 0
        await connection.copy_records_to_table("user_actions", records=rows, columns=COLUMNS)
        return len(rows)
