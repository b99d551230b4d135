"""Takes committed events from the outbox to Redis: for each partition one process at a time. A row is read in order of id,
published, then deleted; no transaction is open meanwhile. Rows that commit late are seen late, never lost."""

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import structlog
from redis.exceptions import ResponseError

from hw_server.db.errors import UNREACHABLE
from hw_server.db.pool import connect_options
from hw_server.errors import Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.operations import History
from hw_server.settings import Settings
from hw_server.topics.registry import Registry
from hw_server.topics.store import Fenced, TopicStore, Unreachable

log = structlog.get_logger()

LOCK_SPACE = 0x6877_7265  # "hwre": the first half of the advisory locks of partitions
BATCH = 500  # rows
HEARTBEAT = 1.0  # seconds
DEAD_AFTER = 5.0  # seconds without a heartbeat before the next process ends the holder's session
MAX_DIGITS = 19  # of a bigint
RETRY = 1.0  # seconds before a refused event is tried again, and after a failure
# A holder whose machine is gone without a word must not keep its locks: PostgreSQL notices within 15 seconds.
SESSION = {
    "application_name": "hw-server topic relay",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "12000",
}
# Identifies the outbox: changes with a restore (cluster or table) and a promotion (timeline).
INCARNATION = """
    SELECT system_identifier || '-' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || '-'
           || 'topic_outbox'::regclass::oid
    FROM pg_control_system()
"""
ACQUIRE = """
    UPDATE topic_relays SET pid = pg_backend_pid(), fence = nextval('topic_fences'), heartbeat = now()
    WHERE partition = $1 RETURNING fence
"""
# A higher fence for the holder; does not count as its heartbeat.
FENCE = "UPDATE topic_relays SET fence = nextval('topic_fences') WHERE partition = $1 RETURNING fence"
# The session that holds the lock of a partition and has been silent; its process may be stopped or cut off.
END_SILENT = """
    SELECT pg_terminate_backend(l.pid) FROM topic_relays r
    JOIN pg_locks l ON l.locktype = 'advisory' AND l.classid = $1 AND l.objid = r.partition::integer::oid AND l.pid = r.pid AND l.granted
    JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
    WHERE r.heartbeat < now() - make_interval(secs => $2) AND r.pid <> pg_backend_pid()
"""
# Who may still commit a row with an id drawn so far: an INSERT locks its table until its transaction ends.
WRITERS = """
    SELECT virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND relation = 'topic_outbox'::regclass AND mode = 'RowExclusiveLock'
      AND pid <> pg_backend_pid()
"""
OLDEST = """
    SELECT id, extract(epoch FROM now() - created_at) AS age FROM topic_outbox
    WHERE partition = $1 AND id > $2 ORDER BY id LIMIT 1
"""
LAST_ID = (
    "SELECT last_value FROM pg_sequences WHERE sequencename = 'topic_outbox_id_seq' AND schemaname = current_schema()"
)
ROWS = """
    SELECT id, topic, data FROM topic_outbox
    WHERE partition = $1 AND id > $2 AND topic <> ALL ($3::text[]) ORDER BY id LIMIT $4
"""
BURY = """
    WITH dead AS (DELETE FROM topic_outbox WHERE id = $1 RETURNING id, topic, data, created_at)
    INSERT INTO topic_dead_letters (id, topic, data, created_at, error) SELECT id, topic, data, created_at, $2 FROM dead
"""


@dataclass(slots=True)
class Partition:
    """A partition that this process holds. Rows with id <= `floor` are published (or dead letters); reads start
    after it to skip dead tuples."""

    number: int
    fence: int
    floor: int = 0
    next_floor: int = 0
    writers: set[str] = field(default_factory=set)  # that may still commit a row up to `next_floor`
    tries: dict[str, int] = field(default_factory=dict)  # of the first row of a topic
    blocked: dict[str, float] = field(default_factory=dict)  # topic -> when it is tried again
    waiting: bool = False  # there are rows, but this process cannot reach Redis


class Relay:
    """Publishes committed events from the outbox to Redis, for the partitions that this process holds. A supervised service."""

    name = "topic-relay"

    def __init__(self, settings: Settings, registry: Registry, store: TopicStore, metrics: Metrics) -> None:
        self._settings = settings
        self._registry = registry
        self._store = store
        self._woken = asyncio.Event()
        self._held: dict[int, Partition] = {}
        self._partitions = 0
        self._incarnation = ""
        self._reached_since = math.inf  # time.monotonic() since which every check has reached Redis
        self._published = metrics.topic_published
        self._dead = metrics.topic_dead_letters
        self._holding = metrics.topic_partitions
        self._lag = metrics.topic_outbox_lag

    def wake(self) -> bool:
        """Signals new events; returns whether this process holds all partitions."""
        self._woken.set()
        return bool(self._held) and len(self._held) == self._partitions

    async def run(self) -> None:
        while True:
            try:
                await self._serve()
            except (*UNREACHABLE, asyncpg.PostgresError, TimeoutError) as error:
                log.warning("topic_relay_failed", error=f"{type(error).__name__}: {str(error)[:200]}")
            finally:
                self._held.clear()
                self._holding.set(0)
            await asyncio.sleep(RETRY)

    async def _serve(self) -> None:
        """Holds partitions as long as its session lives: the locks are the session's."""
        database = self._settings.database
        connection = await asyncpg.connect(
            **connect_options(database),
            timeout=database.connect_timeout,
            command_timeout=database.command_timeout,
            server_settings=SESSION,
        )
        try:
            self._incarnation = await connection.fetchval(INCARNATION)
            self._partitions = await connection.fetchval("SELECT count(*) FROM topic_relays")
            beat = 0.0
            while True:
                if time.monotonic() - beat >= HEARTBEAT:
                    beat = time.monotonic()
                    await self._beat(connection)
                self._woken.clear()
                if not await self._relay_all(connection):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._woken.wait(), self._settings.topics.poll_interval)
        finally:
            connection.terminate()

    async def _beat(self, connection: Any) -> None:
        await connection.execute(
            "UPDATE topic_relays SET heartbeat = now() WHERE partition = ANY ($1) AND pid = pg_backend_pid()",
            # No heartbeat for partitions that wait because this process cannot reach Redis: another one may take them.
            [number for number, partition in self._held.items() if not partition.waiting],
        )
        if len(self._held) < self._partitions and await self._reaches_redis():
            # Right after an outage of Redis the holders resume by themselves: end no session yet.
            if time.monotonic() - self._reached_since > DEAD_AFTER:
                await connection.fetch(END_SILENT, LOCK_SPACE, DEAD_AFTER)
            for number in range(self._partitions):
                # One in each beat, so that processes that start together share the partitions.
                if number not in self._held and await self._acquire(connection, number):
                    break
        self._holding.set(len(self._held))
        lag = 0.0
        for partition in self._held.values():
            lag = max(lag, await self._raise_floor(connection, partition))
        self._lag.set(lag)

    async def _reaches_redis(self) -> bool:
        """Whether this process could publish: else it must end no other's session, nor hold what it cannot serve."""
        try:
            await self._store.read("")
        except Unavailable:
            self._reached_since = math.inf
            return False
        self._reached_since = min(self._reached_since, time.monotonic())
        return True

    async def _acquire(self, connection: Any, number: int) -> bool:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK_SPACE, number):
            return False
        partition = Partition(number, await connection.fetchval(ACQUIRE, number))
        try:
            await self._forget_deleted(connection, number)
        except Unavailable:
            await connection.execute("SELECT pg_advisory_unlock($1, $2)", LOCK_SPACE, number)
            return False
        self._held[number] = partition
        log.info("topic_partition_acquired", partition=number, fence=partition.fence)
        return True

    async def _forget_deleted(self, connection: Any, number: int) -> None:
        """The holder before may have ended between a DELETE and forgetting its keys."""
        keys = await self._store.published(number)
        ids = {key: key.rpartition(b":")[2] for key in keys}
        known = {key: int(row) for key, row in ids.items() if row.isdigit() and len(row) < MAX_DIGITS}
        rows = await connection.fetch("SELECT id FROM topic_outbox WHERE id = ANY ($1::bigint[])", list(known.values()))
        present = {row["id"] for row in rows}
        # Members that are no keys are removed, too.
        if stale := [key for key in keys if known.get(key) not in present]:
            await self._store.forget(number, stale)

    async def _raise_floor(self, connection: Any, partition: Partition) -> float:
        """Raises the lowest id to read from; returns the age of the oldest event, seconds. Without it every read steps over the
        dead rows, which a long transaction keeps from being vacuumed. Ids up to `next_floor` are done once all transactions
        that could commit a lower one have ended, and a later read has found none."""
        writers = {row[0] for row in await connection.fetch(WRITERS)}
        oldest = await connection.fetchrow(OLDEST, partition.number, partition.floor)
        if not partition.writers & writers:
            if partition.next_floor:
                partition.floor = min(partition.next_floor, oldest["id"] - 1) if oldest else partition.next_floor
            partition.next_floor = await connection.fetchval(LAST_ID) or 0
            partition.writers = {row[0] for row in await connection.fetch(WRITERS)}
        return float(oldest["age"]) if oldest else 0.0

    async def _relay_all(self, connection: Any) -> bool:
        """Whether there may be more at once."""
        more = False
        for partition in list(self._held.values()):
            try:
                more |= await self._relay(connection, partition)
                partition.waiting = False
            except Fenced:
                log.warning("topic_relay_fenced", partition=partition.number)
                del self._held[partition.number]
                await connection.execute("SELECT pg_advisory_unlock($1, $2)", LOCK_SPACE, partition.number)
            except Unavailable as error:
                # Redis as a whole: no row is to blame, all wait.
                partition.waiting = isinstance(error, Unreachable)
                log.warning("topic_relay_waits", error=error.detail)
                # What was sent may still reach Redis; the higher fence makes Redis refuse it, should it arrive after its retry.
                partition.fence = await connection.fetchval(FENCE, partition.number)
                await asyncio.sleep(RETRY / 2)
                return False
        return more

    async def _relay(self, connection: Any, partition: Partition) -> bool:
        now = time.monotonic()
        partition.blocked = {topic: until for topic, until in partition.blocked.items() if until > now}
        rows = await connection.fetch(ROWS, partition.number, partition.floor, list(partition.blocked), BATCH)
        if not rows:
            return False
        by_topic: dict[str, list[Any]] = {}
        for row in rows:
            by_topic.setdefault(row["topic"], []).append(row)
        # A topic that was refused is tried one row at a time: the first of them is to blame.
        batches = {topic: events[:1] if topic in partition.tries else events for topic, events in by_topic.items()}
        refusals = await self._store.append(
            partition.number,
            partition.fence,
            self._incarnation,
            [
                (topic, self._history(topic), [(self._key(row["id"]), row["data"].encode()) for row in batch])
                for topic, batch in batches.items()
            ],
        )
        done: list[int] = []
        for (topic, batch), refusal in zip(batches.items(), refusals, strict=True):
            if refusal is not None:
                await self._refused(connection, partition, topic, batch[0]["id"], refusal)
                continue
            partition.tries.pop(topic, None)
            done += [row["id"] for row in batch]
        await self._delete(connection, partition, done)
        return len(rows) == BATCH or len(done) < len(rows)

    async def _delete(self, connection: Any, partition: Partition, done: list[int]) -> None:
        if not done:
            return
        replicas = self._settings.topics.wait_replicas
        if replicas and not await self._store.wait(replicas):
            raise Unavailable("too few replicas of Redis hold the events")
        await connection.execute("DELETE FROM topic_outbox WHERE id = ANY ($1::bigint[])", done)
        self._published.inc(len(done))
        await self._store.forget(partition.number, [self._key(row) for row in done])

    async def _refused(
        self, connection: Any, partition: Partition, topic: str, row: int, refusal: ResponseError
    ) -> None:
        """Redis refuses an event on its own account: its topic waits, the others go on."""
        tries = partition.tries[topic] = partition.tries.get(topic, 0) + 1
        log.error("topic_event_refused", topic=topic, row=row, tries=tries, error=str(refusal)[:200])
        if tries < self._settings.topics.tries:
            partition.blocked[topic] = time.monotonic() + RETRY
            return
        await connection.execute(BURY, row, str(refusal)[:1000])
        del partition.tries[topic]
        self._dead.inc()

    def _key(self, row: int) -> str:
        """Of a row of this outbox: after a restore or a promotion ids may be drawn again."""
        return f"{self._incarnation}:{row}"

    def _history(self, name: str) -> History:
        for topic in self._registry.topics:
            if topic.match(name) is not None:
                return topic.history
        return History()  # of a removed feature; its last events are still published
