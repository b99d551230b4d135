"""The outbox in PostgreSQL: events are committed with the change that publishes them. Ephemeral events bypass it."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import cache

from prometheus_client import Counter

from hw_server.errors import Unavailable
from hw_server.operations.events import Event, Statement
from hw_server.redis import CacheRedis, Keys
from hw_server.settings import TopicSettings
from hw_server.topics.store import TopicStore

DEBOUNCE = 0.01  # seconds; at most one signal in each
LOCK_SPACE = 0x6877_746F  # "hwto": the first half of the advisory locks of ordered topics


@cache
def _insert_one(first: int) -> str:
    topic, data = f"${first}", f"${first + 1}"
    return f"INSERT INTO topic_outbox (partition, topic, data) VALUES (topic_partition({topic}), {topic}, {data})"  # noqa: S608


@cache
def _insert_many(first: int) -> str:
    return (
        "INSERT INTO topic_outbox (partition, topic, data) SELECT topic_partition(topic), topic, data "  # noqa: S608
        f"FROM unnest(${first}::text[], ${first + 1}::text[]) WITH ORDINALITY AS event (topic, data, n) ORDER BY n"
    )


class PostgresOutbox:
    """The platform's `Outbox`. `NOTIFY` inside the transaction would serialize all commits, so the relay is woken after it:
    in this process by `wake`, in others over Redis. A lost signal costs one `topics.poll_interval`."""

    def __init__(
        self, settings: TopicSettings, redis: CacheRedis, keys: Keys, store: TopicStore, ephemeral: Counter
    ) -> None:
        self.max_events = settings.max_events
        self.max_event_bytes = settings.max_event_bytes
        self.wake: Callable[[], bool] = lambda: False  # returns whether this process holds all relays
        self._redis = redis
        self._store = store
        self._ephemeral = ephemeral
        self._channel = keys.topic_wake
        self._scheduled = False
        self._signals: set[asyncio.Task[None]] = set()

    def ordered_topics(self, events: Sequence[Event]) -> Statement | None:
        topics = sorted({event.topic for event in events if event.declared.ordered})
        if not topics:
            return None
        # Sorted: every transaction locks in the same order, so that two cannot deadlock.
        sql = f"SELECT pg_advisory_xact_lock({LOCK_SPACE}, hashtext(topic)) FROM unnest($1::text[]) AS topic"  # noqa: S608
        return Statement(sql, [topics])

    def insertion(self, events: Sequence[Event], first: int) -> Statement:
        if len(events) == 1:
            # The most frequent case; cheaper to plan and to run than a set-returning function.
            [event] = events
            return Statement(_insert_one(first), (event.topic, event.data.decode()))
        return Statement(
            _insert_many(first), ([event.topic for event in events], [event.data.decode() for event in events])
        )

    def committed(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(DEBOUNCE, self._signal, context=Context())

    async def send(self, events: Sequence[Event]) -> None:
        by_topic: dict[str, list[Event]] = {}
        for event in events:
            by_topic.setdefault(event.topic, []).append(event)
        refusals = await self._store.send(
            (topic, batch[0].declared.history, [event.data for event in batch]) for topic, batch in by_topic.items()
        )
        if refusal := next(filter(None, refusals), None):
            raise Unavailable(f"Redis refuses the event: {str(refusal)[:200]}")
        self._ephemeral.inc(len(events))

    def _signal(self) -> None:
        self._scheduled = False
        if not self.wake():
            task = asyncio.get_running_loop().create_task(self._publish(), name="topic-wake")
            self._signals.add(task)
            task.add_done_callback(self._signals.discard)

    async def _publish(self) -> None:
        try:
            await self._redis.run("topics", lambda client: client.publish(self._channel, b""))
        except Unavailable:
            return
