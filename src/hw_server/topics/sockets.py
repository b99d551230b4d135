"""The subscriptions of sockets: `connection.topics` are their names, the hub finds the sockets of a topic."""

import structlog

from hw_server.auth import Principal
from hw_server.errors import DomainError, Forbidden, InternalError
from hw_server.settings import TopicSettings
from hw_server.topics.broker import Broker, Channel, Position
from hw_server.topics.registry import Registry
from hw_server.ws.connection import WebSocketConnection
from hw_server.ws.hub import Hub

log = structlog.get_logger("topics")


class SocketSubscriptions:
    """Which socket follows which topic, from the reservation of its place until it unsubscribes, loses the right or closes."""

    def __init__(self, settings: TopicSettings, broker: Broker, registry: Registry, hub: Hub) -> None:
        self._settings = settings
        self._broker = broker
        self._registry = registry
        self._hub = hub
        hub.on_removed.append(self._removed)

    def reserve(self, connection: WebSocketConnection, topic: str) -> None:
        """Raises `Forbidden` for a topic too many. A second subscription of one topic begins anew."""
        if connection.topics is None:
            connection.topics = set()
        if topic not in connection.topics and len(connection.topics) >= self._settings.max_per_socket:
            raise Forbidden(f"a socket subscribes to at most {self._settings.max_per_socket} topics")
        self._detach(connection, topic)
        connection.topics.add(topic)

    def reserved(self, connection: WebSocketConnection, topic: str) -> bool:
        return connection.topics is not None and topic in connection.topics

    def attach(self, connection: WebSocketConnection, channel: Channel, position: Position) -> None:
        """The response that holds `position` was sent: from here on the socket gets what follows."""
        if self.reserved(connection, channel.name) and connection in self._hub.connections:
            self._detach(connection, channel.name)
            self._broker.attach_socket(channel, connection, position)
        self._broker.release(channel)

    def cancel(self, connection: WebSocketConnection, topic: str) -> bool:
        """Whether there was a subscription."""
        if not self.reserved(connection, topic):
            return False
        assert connection.topics is not None
        self._detach(connection, topic)
        connection.topics.discard(topic)
        return True

    def _detach(self, connection: WebSocketConnection, topic: str) -> None:
        if connection in self._hub.subscribers(topic):
            self._broker.detach_socket(connection, topic)

    def _removed(self, connection: WebSocketConnection) -> None:
        for topic in connection.topics or ():
            self._detach(connection, topic)
        connection.topics = None

    async def recheck(self, connection: WebSocketConnection, principal: Principal) -> None:
        """After the socket's token was replaced: ends what its new roles do not allow."""
        for topic in list(connection.topics or ()):
            try:
                await self._registry.authorize("subscribe", topic, principal)
            except DomainError as error:
                self._end(connection, topic, error.code)
            except Exception:
                # A defect of its rule must not leave it, nor those behind it, as they are.
                log.exception("topic_rule_failed", topic=topic)
                self._end(connection, topic, InternalError.code)

    def _end(self, connection: WebSocketConnection, topic: str, reason: str) -> None:
        if self.cancel(connection, topic):
            connection.notify("topic.unsubscribed", {"topic": topic, "reason": reason})
