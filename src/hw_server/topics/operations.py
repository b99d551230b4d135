"""Topics over the socket and over HTTP."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from hw_server.auth import Principal
from hw_server.errors import Forbidden, InvalidInput, NotFound
from hw_server.operations import SIGNED_IN, Call, Events, Operations, Provided, Socket, Text
from hw_server.ratelimit import RateLimiter
from hw_server.topics.broker import Broker, Position
from hw_server.topics.registry import Registry
from hw_server.topics.sockets import SocketSubscriptions
from hw_server.topics.store import TopicStore
from hw_server.ws.connection import WebSocketConnection

operations = Operations("/topics")
Name = Annotated[Text, Field(min_length=1, max_length=255, description="The topic's name.")]


class Since(BaseModel):
    """The epoch and offset of the last event that the client has."""

    model_config = ConfigDict(extra="forbid")

    epoch: str = Field(max_length=64)
    offset: int = Field(ge=0, le=2**53)


class TopicQuery(BaseModel):
    """One topic, by name; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    topic: Name


class Subscribe(TopicQuery):
    """A topic to subscribe to; with `recover` the events after that position come first."""

    recover: Since | None = Field(None, description="The last event that the client has.")


class HistoryQuery(TopicQuery):
    """A part of the history: at most `limit` events behind the offset `after`."""

    epoch: str | None = Field(
        None, max_length=64, description="Epoch of `after`; a position of another one is not found."
    )
    after: int = Field(0, ge=0, le=2**53, description="Offset behind which to begin.")
    limit: int = Field(100, ge=1, le=500)


class Publish(BaseModel):
    """An event to publish; refused with `validation_error` where `data` is not of the topic's type."""

    model_config = ConfigDict(extra="forbid")

    data: Any = Field(description="The event, as the topic declares it.")


class TopicEvent(BaseModel):
    """One event of a topic; within an epoch offsets increase by one."""

    offset: int
    data: Any


class Subscribed(BaseModel):
    """`recovered` says whether `events` are all that the client missed; without `recover` there are none."""

    topic: str
    epoch: str
    offset: int = Field(description="Of the last event; the next one that comes has the next offset.")
    recovered: bool
    events: list[TopicEvent]


class TopicHistory(BaseModel):
    """Events that the topic still keeps, oldest first."""

    topic: str
    epoch: str
    offset: int = Field(description="Of the last event of the topic.")
    events: list[TopicEvent]


@operations.rpc("topic.subscribe", role=SIGNED_IN)
async def subscribe(
    query: Subscribe,
    call: Call,
    socket: Socket[WebSocketConnection],
    registry: Provided[Registry],
    subscriptions: Provided[SocketSubscriptions],
    broker: Provided[Broker],
) -> Subscribed:
    """Subscribe the socket to a topic, from now on or from the last event that the client has."""
    # Before it is authorized: a refresh of the token meanwhile sees this topic and checks it again.
    reservation = subscriptions.reserve(socket, query.topic)
    events = None
    try:
        assert socket.principal is not None
        topic = await registry.authorize("subscribe", query.topic, socket.principal)
        channel = await broker.join(query.topic, topic)
        try:
            if query.recover is not None:
                events = await broker.missed(channel, Position(query.recover.epoch, query.recover.offset))
            if not subscriptions.holds(socket, query.topic, reservation):
                raise Forbidden("the subscription was ended meanwhile")
        except BaseException:
            broker.release(channel)
            raise
    except BaseException:
        subscriptions.give_up(socket, query.topic, reservation)
        raise
    position = Position(channel.epoch, channel.offset)
    assert call.after_response is not None
    call.after_response.append(lambda: subscriptions.attach(socket, channel, position, reservation))
    return Subscribed(
        topic=query.topic,
        epoch=position.epoch,
        offset=position.offset,
        recovered=events is not None,
        events=_events(events or []),
    )


@operations.rpc("topic.unsubscribe", role=SIGNED_IN)
async def unsubscribe(
    query: TopicQuery, socket: Socket[WebSocketConnection], subscriptions: Provided[SocketSubscriptions]
) -> None:
    """End the socket's subscription of a topic."""
    if not subscriptions.cancel(socket, query.topic):
        raise NotFound("the socket is not subscribed to this topic")


@operations.post("topic.publish", "/publish", role=SIGNED_IN, status=200, problems=(404,))
async def publish(
    query: TopicQuery,
    body: Publish,
    caller: Principal,
    events: Events,
    registry: Provided[Registry],
    limiter: Provided[RateLimiter],
) -> None:
    """Publish an event to a topic that takes events of clients. It is durable once this is answered, unless the topic is
    ephemeral: then Redis has it."""
    topic = await registry.authorize("publish", query.topic, caller)
    await limiter.check("publish", caller.budget_key)
    try:
        event = topic.load(to_json(body.data))
    except ValidationError as error:
        raise InvalidInput(
            [
                {
                    "field": ".".join(map(str, ("data", *item["loc"])))[:200],
                    "message": item["msg"],
                    "type": item["type"],
                }
                for item in error.errors(include_url=False, include_input=False, include_context=False)[:50]
            ]
        ) from None
    _, params = registry.find(query.topic)
    events.publish(topic, event, **params)


@operations.get("topic.history", "/history", role=SIGNED_IN, problems=(404,))
async def history(
    query: HistoryQuery, caller: Principal, registry: Provided[Registry], store: Provided[TopicStore]
) -> TopicHistory:
    """Get the last events of a topic, oldest first."""
    await registry.authorize("subscribe", query.topic, caller)
    stored = await store.read(query.topic, query.after + 1, query.limit)
    if query.epoch is not None and query.epoch != stored.epoch:
        raise NotFound("the topic has a new epoch; what came before is gone")
    return TopicHistory(topic=query.topic, epoch=stored.epoch, offset=stored.offset, events=_events(stored.events))


def _events(events: list[tuple[int, bytes]]) -> list[TopicEvent]:
    return [TopicEvent(offset=offset, data=from_json(data)) for offset, data in events]
