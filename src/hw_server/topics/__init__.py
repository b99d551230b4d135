"""Topics: committed events reach every subscriber once and in order; missed ones are recovered."""

from hw_server.auth.authentication import Authentication
from hw_server.auth.jwks import SigningKeys
from hw_server.auth.revocations import Revocations
from hw_server.observability.metrics import Metrics
from hw_server.operations import Feature
from hw_server.operations.events import Outbox
from hw_server.ratelimit import ConnectionLimiter, RateLimiter
from hw_server.redis import CacheRedis, Keys
from hw_server.runtime.parts import Parts
from hw_server.settings import Settings
from hw_server.topics.broker import Broker, TopicsFull
from hw_server.topics.feed import Feed
from hw_server.topics.operations import operations
from hw_server.topics.outbox import PostgresOutbox
from hw_server.topics.registry import Registry
from hw_server.topics.relay import Relay
from hw_server.topics.sockets import SocketSubscriptions, TooManyTopics
from hw_server.topics.store import TopicStore
from hw_server.topics.streams import EventStreams, router
from hw_server.ws.hub import Hub
from hw_server.ws.sign_in import SignIn


def _store(parts: Parts) -> TopicStore:
    return TopicStore(parts[Settings].redis, parts[CacheRedis], parts[Keys])


def _outbox(parts: Parts) -> PostgresOutbox:
    settings, ephemeral = parts[Settings].topics, parts[Metrics].topic_ephemeral
    return PostgresOutbox(settings, parts[CacheRedis], parts[Keys], _store(parts), ephemeral)


def _feed(parts: Parts) -> Feed:
    return Feed(parts[Settings].redis, parts[CacheRedis], parts[Keys])


def _broker(parts: Parts) -> Broker:
    return Broker(parts[Settings].topics, parts[TopicStore], parts[Feed], parts[Hub], parts[Keys], parts[Metrics])


def _relay(parts: Parts) -> Relay:
    relay = Relay(parts[Settings], parts[Registry], _store(parts), parts[Metrics])
    parts[PostgresOutbox].wake = relay.wake
    parts[Feed].on_wake = relay.wake
    return relay


def _subscriptions(parts: Parts) -> SocketSubscriptions:
    subscriptions = SocketSubscriptions(parts[Settings].topics, parts[Broker], parts[Registry], parts[Hub])
    parts[SignIn].on_refreshed.append(subscriptions.recheck)
    return subscriptions


def _streams(parts: Parts) -> EventStreams:
    streams = EventStreams(
        parts[Settings],
        parts[Broker],
        parts[Registry],
        parts[Authentication],
        parts[RateLimiter],
        parts[ConnectionLimiter],
        parts[Metrics],
    )
    parts[Revocations].listeners.append(streams.on_revoked)
    parts[SigningKeys].listeners.append(streams.on_keys_withdrawn)
    return streams


feature = Feature(
    "topics",
    operations,
    router,
    provides={
        TopicStore: _store,
        PostgresOutbox: _outbox,
        Outbox: lambda parts: parts[PostgresOutbox],
        Feed: _feed,
        Broker: _broker,
        Relay: _relay,
        SocketSubscriptions: _subscriptions,
        EventStreams: _streams,
    },
    errors=(TooManyTopics, TopicsFull),
    services=(
        lambda parts: parts[Feed],
        lambda parts: parts[Broker],
        lambda parts: parts[Relay],
        lambda parts: parts[EventStreams],
    ),
)
