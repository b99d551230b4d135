"""Events that an operation publishes: buffered, and written with its audit row as the last statement of its transaction. Those
of ephemeral topics are sent after it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from hw_server.errors import PayloadTooLarge
from hw_server.operations.topic import Topic

E = TypeVar("E")


class Event(NamedTuple):
    """An event to publish: the concrete name of its topic, its data and the declaration of the topic."""

    topic: str
    data: bytes  # JSON
    declared: Topic[Any]


class Statement(NamedTuple):
    """SQL, with its arguments."""

    sql: str
    arguments: Sequence[Any]


class Outbox(Protocol):
    """Stores events until they are published, and sends ephemeral ones directly."""

    max_events: int  # of one transaction
    max_event_bytes: int

    def ordered_topics(self, events: Sequence[Event]) -> Statement | None:
        """A statement that serializes transactions of ordered topics, None without any; execute it before the insertion."""

    def insertion(self, events: Sequence[Event], first: int) -> Statement:
        """The INSERT; its parameters are numbered from `first`."""

    def committed(self) -> None:
        """Signals that there are new events; never waits."""

    async def send(self, events: Sequence[Event]) -> None:
        """Publishes ephemeral events now; raises `Unavailable`."""


class Events:
    """The events of one call. With `Write` they commit with its transaction; without a connection, one transaction inserts
    the events and the audit row. Events of a transaction that rolls back are discarded."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.buffered: list[Event] = []
        self.ephemeral: list[Event] = []

    def publish(self, topic: Topic[E], event: E, **params: Any) -> None:
        """Raises `PayloadTooLarge` for an event over `topics.max_event_bytes`, or more than `topics.max_events` of one
        transaction."""
        data = topic.dump(event)
        if len(data) > self._outbox.max_event_bytes:
            raise PayloadTooLarge(f"an event has at most {self._outbox.max_event_bytes} bytes")
        if len(self.buffered) + len(self.ephemeral) >= self._outbox.max_events:
            raise PayloadTooLarge(f"a transaction publishes at most {self._outbox.max_events} events")
        events = self.ephemeral if topic.ephemeral else self.buffered
        events.append(Event(topic.name(**params), data, topic))
