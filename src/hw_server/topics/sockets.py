"""The subscriptions of sockets: `connection.topics` are their names, the hub finds the sockets of a topic."""

import asyncio

import structlog

from hw_server.auth import Principal
from hw_server.errors import DomainError, Forbidden, InternalError, Timeout
from hw_server.settings import TopicSettings
from hw_server.topics.broker import Broker, Channel, Position
from hw_server.topics.registry import Registry
from hw_server.ws.connection import WebSocketConnection
from hw_server.ws.hub import Hub

log = structlog.get_logger("topics")


class TooManyTopics(Forbidden):
    """403: the socket has `topics.max_per_socket` subscriptions already."""

    code = "too_many_topics"
    title = "Too many topics"


class Reservation:
    """The place of one subscription among those of its socket; a later one of the same topic takes it over."""

    __slots__ = ()


class SocketSubscriptions:
    """Which socket follows which topic, from the reservation of its place until it unsubscribes, loses the right or closes."""

    def __init__(self, settings: TopicSettings, broker: Broker, registry: Registry, hub: Hub) -> None:
        self._settings = settings
        self._broker = broker
        self._registry = registry
        self._hub = hub
        hub.on_removed.append(self._removed)

    def reserve(self, connection: WebSocketConnection, topic: str) -> Reservation:
        """Raises `TooManyTopics` past `topics.max_per_socket`. A second subscription of one topic begins anew; where it fails, none
        is left."""
        if connection.topics is None:
            connection.topics = {}
        if topic not in connection.topics and len(connection.topics) >= self._settings.max_per_socket:
            raise TooManyTopics(f"a socket subscribes to at most {self._settings.max_per_socket} topics")
        self._detach(connection, topic)
        connection.topics[topic] = reservation = Reservation()
        return reservation

    def holds(self, connection: WebSocketConnection, topic: str, reservation: Reservation) -> bool:
        """Whether the subscription was neither ended nor begun anew since."""
        return connection.topics is not None and connection.topics.get(topic) is reservation

    def attach(
        self, connection: WebSocketConnection, channel: Channel, position: Position, reservation: Reservation
    ) -> None:
        """The response that holds `position` was sent: from here on the socket gets what follows."""
        if self.holds(connection, channel.name, reservation) and connection in self._hub.connections:
            self._broker.attach_socket(channel, connection, position)
        self._broker.release(channel)

    def give_up(self, connection: WebSocketConnection, topic: str, reservation: Reservation) -> None:
        """After a subscription failed."""
        if self.holds(connection, topic, reservation):
            self.cancel(connection, topic)

    def cancel(self, connection: WebSocketConnection, topic: str) -> bool:
        """Ends the subscription; returns whether there was one."""
        if connection.topics is None or connection.topics.pop(topic, None) is None:
            return False
        self._detach(connection, topic)
        return True

    def _detach(self, connection: WebSocketConnection, topic: str) -> None:
        if connection in self._hub.subscribers(topic):
            self._broker.detach_socket(connection, topic)

    def _removed(self, connection: WebSocketConnection) -> None:
        for topic in connection.topics or ():
            self._detach(connection, topic)
        connection.topics = None

    async def recheck(self, connection: WebSocketConnection, principal: Principal) -> None:
        """After the socket's token was replaced: ends what its new roles do not allow, and what cannot be
        decided in time."""
        undecided = set(connection.topics or ())

        async def check(topic: str) -> None:
            try:
                await self._registry.authorize("subscribe", topic, principal)
            except DomainError as error:
                self._end(connection, topic, error.code)
            except Exception:
                # A defect in one rule must neither keep its subscription nor skip the others.
                log.exception("topic_rule_failed", topic=topic)
                self._end(connection, topic, InternalError.code)
            undecided.discard(topic)

        try:
            await asyncio.gather(*map(check, list(undecided)))
        except BaseException:
            for topic in undecided:
                self._end(connection, topic, Timeout.code)
            raise

    def _end(self, connection: WebSocketConnection, topic: str, reason: str) -> None:
        if self.cancel(connection, topic):
            connection.notify("topic.unsubscribed", {"topic": topic, "reason": reason})
