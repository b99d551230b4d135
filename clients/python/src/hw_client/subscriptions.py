"""Topics over the socket."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, Protocol, TypeVar, cast

from hw_client.errors import HistoryLost, SlowConsumer
from hw_client.events import Event, Position, Reset

Item = TypeVar("Item", bound=Event | Reset)


class Subscriber(Protocol):
    """The client, as a subscription sees it."""

    async def start(self, subscription: "Subscription[Any]") -> None: ...

    async def stop(self, subscription: "Subscription[Any]") -> None: ...

    def abandon(self, subscription: "Subscription[Any]") -> None:
        """`stop` from where nothing can be awaited."""


class Subscription(Generic[Item]):
    """The events of a topic, in order and once each, also across reconnects. An async iterator; use `async with` to know
    when it has begun, and that it has ended.

    `position` is that of the last item given out: with it the next process can go on where this one stopped.
    """

    def __init__(
        self, subscriber: Subscriber, topic: str, since: Position | None, buffer: int, *, raise_resets: bool
    ) -> None:
        self.topic = topic
        self.position = since
        self.received = since  # the last event that came, which may wait in the buffer
        self.ended = False
        self.following = (
            False  # whether the server has answered; what it sends before belongs to an earlier subscription
        )
        self.started: asyncio.Future[None] | None = None
        self._subscriber = subscriber
        self._limit = buffer
        self._raise_resets = raise_resets
        self._buffer: deque[Event | Reset] = deque()
        self._filled = asyncio.Event()
        self._error: Exception | None = None

    async def __aenter__(self) -> "Subscription[Item]":
        await self._subscriber.start(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[Item]:
        # A generator, so that `break` ends the subscription, too.
        try:
            while True:
                try:
                    item = await self.__anext__()
                except StopAsyncIteration:
                    return
                yield item
        finally:
            await self.aclose()

    async def __anext__(self) -> Item:
        if not self._buffer and not self.ended:
            await self._subscriber.start(self)
        while not self._buffer:
            if self.ended:
                raise self._error or StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        item = self._buffer.popleft()
        self.position = item.position
        if self._raise_resets and isinstance(item, Reset):
            self.end(HistoryLost(item))
            self._subscriber.abandon(self)
            raise HistoryLost(item)
        return cast("Item", item)

    async def aclose(self) -> None:
        """Ends the subscription; what is still in the buffer is dropped."""
        self.end(None)
        self._buffer.clear()
        await self._subscriber.stop(self)

    # What the server says

    def answered(self, result: dict[str, Any]) -> None:
        """The answer of `topic.subscribe`."""
        self.following = True
        if self.ended:
            return
        at = Position(result["epoch"], result["offset"])
        if self.received is None:
            self.received = self.position = at
        elif result["recovered"]:
            self.take(at.epoch, result["events"])
        else:
            self.reset(at)

    def take(self, epoch: str, events: Iterable[dict[str, Any]]) -> None:
        """What is not newer than the last event came before."""
        for event in events if self.following else ():
            if self.received is not None and epoch == self.received.epoch and event["offset"] <= self.received.offset:
                continue
            if self.received is not None and epoch != self.received.epoch:
                self.reset(Position(epoch, event["offset"] - 1))
            self._put(Event(self.topic, epoch, event["offset"], event["data"]))

    def reset(self, at: Position) -> None:
        if self.following:
            self._put(Reset(self.topic, at.epoch, at.offset))

    def end(self, error: Exception | None) -> None:
        """No more comes; what is in the buffer is given out before the error."""
        if not self.ended:
            self.ended, self._error = True, error
            self._filled.set()
        if self.started is not None and not self.started.done():
            self.started.set_result(None)

    def _put(self, item: Event | Reset) -> None:
        if self.ended:
            return
        if len(self._buffer) >= self._limit:
            self.end(SlowConsumer(self.topic, self.received))
            self._subscriber.abandon(self)
            return
        self._buffer.append(item)
        self.received = item.position
        self._filled.set()

    @property
    def error(self) -> Exception | None:
        return self._error
