"""The client: one connection that is made again when it breaks, with the subscriptions that it carries."""

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, overload
from weakref import WeakValueDictionary

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, InvalidStatus

from hw_client.connection import Connection, Token, token_of
from hw_client.errors import (
    AlreadySubscribed,
    Closed,
    ConnectionLost,
    HwError,
    NotCarriedOut,
    Refused,
    RpcError,
    SignInFailed,
    SlowConsumer,
    Unreachable,
    Unsubscribed,
)
from hw_client.events import Event, Position, Reset
from hw_client.reconnect import STABLE, Backoff, reconnectable
from hw_client.streams import EventStream
from hw_client.subscriptions import Subscription

log = logging.getLogger("hw_client")
T = TypeVar("T")

Listener = Callable[[dict[str, Any]], None]


class Notification(NamedTuple):
    method: str
    params: dict[str, Any]


class Client:
    """`async with Client("http://localhost:8000", token=sign_in) as client:`

    token: an access token, or a function (async or not) that gives a fresh one; it is asked at each connect, and when the
    server says that the present one expires soon.
    timeout: seconds for the first connect and for each call, waiting for a connection included.
    buffer: how many events or notifications wait for a slow reader before it gets `SlowConsumer`.
    trust_env: whether proxies of the environment are used.
    """

    def __init__(
        self,
        url: str,
        token: Token | None = None,
        *,
        timeout: float = 20.0,
        buffer: int = 10_000,
        backoff: Backoff = Backoff(),  # noqa: B008 - immutable
        trust_env: bool = True,
        max_message_bytes: int = 16 * 2**20,
    ) -> None:
        self._url = url.rstrip("/").replace("ws", "http", 1) if url.startswith("ws") else url.rstrip("/")
        self._token = token
        self._timeout = timeout
        self._limit = buffer
        self._backoff = backoff
        self._trust_env = trust_env
        self._max_message_bytes = max_message_bytes
        self._connection: Connection | None = None
        self._changed = asyncio.Event()  # set while connected, and once there is an end
        self._end: Exception | None = None
        self._last_failure: Exception | None = None
        self._drain_delay = 0.0
        self._runner: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: dict[str, Subscription[Any]] = {}
        # Subscribing to a topic and leaving it take turns: the server runs the calls of a socket concurrently.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # One at a time: what many topics missed, sent at once, is more than the server buffers for a socket.
        self._recovering = asyncio.Lock()
        self._listeners: dict[str, list[Listener]] = {}
        self._readers: list[_Notifications] = []

    # Connecting

    async def __aenter__(self) -> "Client":
        if self._runner is not None:
            raise RuntimeError("a client is entered once")
        self._runner = asyncio.create_task(self._run(), name="hw-client")
        try:
            await self._connected()
        except TimeoutError:
            await self.close()
            raise Unreachable(f"no connection to {self._url}") from self._last_failure
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def close(self) -> None:
        """Ends everything: iterators stop, calls get `Closed`."""
        self._finish(Closed(1000, "by the client"))
        tasks = [task for task in (self._runner, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_closed(self) -> Exception:
        """Waits for the end that no reconnect follows; gives its reason."""
        while self._end is None:
            self._changed.clear()
            await self._changed.wait()
        return self._end

    @property
    def _renewable(self) -> bool:
        return not isinstance(self._token, str | None)

    async def _run(self) -> None:
        failures, first = 0, True
        while True:
            opened, delay = None, 0.0
            try:
                async with await self._open() as socket:
                    opened, first = time.monotonic(), False
                    code, reason = await self._use(Connection(socket, self._on_notification))
                if not reconnectable(code, renewable=self._renewable):
                    self._finish(Closed(code or 1006, reason))
                    return
                self._last_failure = Closed(code or 1006, reason)
                delay, self._drain_delay = self._drain_delay, 0.0
            except SignInFailed as error:
                self._finish(error)
                return
            except Refused as refused:
                if not refused.passing:
                    self._finish(refused)
                    return
                self._last_failure, delay = refused, refused.retry_after
            except (OSError, TimeoutError, InvalidHandshake) as error:
                self._last_failure = error
            except Exception as error:
                # Of the token callback: at first it is shown, later it may pass.
                if first:
                    self._finish(error)
                    return
                log.warning("connecting failed: %r", error)
                self._last_failure = error
            failures = 0 if opened is not None and time.monotonic() - opened > STABLE else failures + 1
            # A server that drains has said when to come, and has spread its clients already.
            await asyncio.sleep(delay + self._backoff.delay(failures))

    async def _open(self) -> connect:
        headers = {}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {await token_of(self._token)}"
        return _Connect(
            self._url.replace("http", "ws", 1) + "/web",
            additional_headers=headers,
            proxy=True if self._trust_env else None,
            max_size=self._max_message_bytes,
            open_timeout=self._timeout,
            close_timeout=2,
            compression=None,
        )

    async def _use(self, connection: Connection) -> tuple[int | None, str]:
        self._connection = connection
        self._changed.set()
        for subscription in self._subscriptions.values():
            self._spawn(self._subscribe(subscription, connection))
        try:
            return await connection.run()
        finally:
            self._connection = None
            if self._end is None:
                self._changed.clear()

    async def _connected(self) -> Connection:
        async with asyncio.timeout(self._timeout):
            while self._connection is None:
                if self._end is not None:
                    raise self._end
                await self._changed.wait()
        return self._connection

    def _finish(self, error: Exception) -> None:
        if self._end is not None:
            return
        self._end = error
        self._changed.set()
        by_us = isinstance(error, Closed) and error.reason == "by the client"
        for subscription in list(self._subscriptions.values()):
            subscription.end(None if by_us else error)
        self._subscriptions.clear()
        for reader in self._readers:
            reader.end(None if by_us else error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Calls

    async def call(self, method: str, /, **params: Any) -> Any:
        """The result of a method; raises `RpcError`, `ConnectionLost`, `Closed` or TimeoutError."""
        return await self._over_a_connection(lambda connection: connection.call(method, params))

    async def batch(self, calls: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        """The results of several calls, which travel together and run in order. A call that failed has its `RpcError` in
        the list."""
        calls = list(calls)
        if not calls:
            return []

        async def send(connection: Connection) -> list[Any]:
            results: list[Any] = await connection.batch(calls)
            for result in results:
                if isinstance(result, ConnectionLost):
                    raise result
            return results

        return await self._over_a_connection(send)

    async def notify(self, method: str, /, **params: Any) -> None:
        """A call without an answer."""
        await self._over_a_connection(lambda connection: connection.notify(method, params))

    async def _over_a_connection(self, send: Callable[[Connection], Awaitable[T]]) -> T:
        """Within the time limit; over the next connection where the server of this one went away before it took the call."""
        async with asyncio.timeout(self._timeout):
            while True:
                connection = await self._connected()
                try:
                    return await send(connection)
                except NotCarriedOut:
                    while self._connection is connection:
                        await asyncio.sleep(0.01)

    # Notifications

    def on(self, method: str, listener: Listener) -> Callable[[], None]:
        """Calls `listener(params)` for each notification of that name that belongs to no subscription; gives back what
        takes the listener away."""
        listeners = self._listeners.setdefault(method, [])
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    async def notifications(self) -> AsyncIterator[Notification]:
        """The same, all of them, as an async iterator."""
        reader = _Notifications(self._limit)
        self._readers.append(reader)
        try:
            while (notification := await reader.next()) is not None:
                yield notification
        finally:
            self._readers.remove(reader)

    def _on_notification(self, method: str, params: dict[str, Any]) -> None:
        subscription = self._subscriptions.get(params.get("topic", ""))
        if method == "session.expiring" and self._renewable and self._connection is not None:
            self._spawn(self._refresh(self._connection))
        elif method == "server.draining":
            self._drain_delay = float(params.get("delay") or 0)
        if subscription is not None and _for_subscription(subscription, method, params):
            if method == "topic.unsubscribed":
                self._forget(subscription)
            return
        for listener in list(self._listeners.get(method, ())):
            try:
                listener(params)
            except Exception:
                log.exception("a listener of %s failed", method)
        for reader in self._readers:
            reader.put(Notification(method, params))

    async def _refresh(self, connection: Connection) -> None:
        assert self._token is not None
        for failures in itertools.count():
            try:
                async with asyncio.timeout(self._timeout):
                    await connection.call("session.refresh", {"token": await token_of(self._token)})
                return
            except ConnectionLost:
                return
            except SignInFailed as error:
                self._finish(error)
                if self._runner is not None:
                    self._runner.cancel()
                return
            except Exception as error:
                log.warning("the token was not refreshed: %r", error)
            await asyncio.sleep(self._backoff.delay(failures))
            if connection is not self._connection:
                return

    # Topics

    @overload
    def subscribe(
        self, topic: str, *, since: Position | None = None, buffer: int | None = None, lost: Literal["yield"] = "yield"
    ) -> Subscription[Event | Reset]: ...

    @overload
    def subscribe(
        self, topic: str, *, since: Position | None = None, buffer: int | None = None, lost: Literal["raise"]
    ) -> Subscription[Event]: ...

    def subscribe(
        self,
        topic: str,
        *,
        since: Position | None = None,
        buffer: int | None = None,
        lost: Literal["yield", "raise"] = "yield",
    ) -> Subscription[Any]:
        """The events of a topic, from now on or after a position. Where events are lost it yields a `Reset`, or raises
        `HistoryLost` if asked to."""
        limit = self._limit if buffer is None else buffer
        return Subscription(self, topic, since, limit, raise_resets=lost == "raise")

    def events(
        self,
        topics: str | Iterable[str],
        *,
        last_event_id: str | None = None,
        lost: Literal["yield", "raise"] = "yield",
    ) -> EventStream:
        """The events of one or several topics as one stream over HTTP (Server-Sent Events). It needs no socket: the client does
        not have to be entered."""
        return EventStream(
            self._url, self._token, [topics] if isinstance(topics, str) else list(topics), last_event_id, self._backoff, self._timeout,
            raise_resets=lost == "raise", trust_env=self._trust_env,
        )  # fmt: skip

    async def start(self, subscription: Subscription[Any]) -> None:
        """Of a `Subscription`: waits until the server has answered; raises what it refuses with."""
        if subscription.started is None and not subscription.ended:
            if self._end is not None:
                raise self._end
            if subscription.topic in self._subscriptions:
                raise AlreadySubscribed(subscription.topic)
            subscription.started = asyncio.get_running_loop().create_future()
            self._subscriptions[subscription.topic] = subscription
            if self._connection is not None:
                self._spawn(self._subscribe(subscription, self._connection))
        if subscription.started is not None:
            await asyncio.shield(subscription.started)
        if isinstance(subscription.error, RpcError):
            raise subscription.error

    async def stop(self, subscription: Subscription[Any]) -> None:
        """Of a `Subscription`: tells the server, if it was told of the beginning."""
        if self._forget(subscription) and (connection := self._connection) is not None:
            await self._unsubscribe(subscription.topic, connection)

    def abandon(self, subscription: Subscription[Any]) -> None:
        if self._forget(subscription) and self._connection is not None:
            self._spawn(self._unsubscribe(subscription.topic, self._connection))

    def _forget(self, subscription: Subscription[Any]) -> bool:
        if self._subscriptions.get(subscription.topic) is not subscription:
            return False
        del self._subscriptions[subscription.topic]
        return True

    def _turn(self, topic: str) -> asyncio.Lock:
        return self._turns.setdefault(topic, asyncio.Lock())

    async def _subscribe(self, subscription: Subscription[Any], connection: Connection) -> None:
        """Subscribes on this connection, from the last event that came. What passes is tried again."""
        for failures in itertools.count():
            try:
                async with (
                    self._turn(subscription.topic),
                    self._recovering if subscription.received else contextlib.nullcontext(),
                ):
                    if subscription.ended or connection is not self._connection:
                        return
                    subscription.following = False
                    params: dict[str, Any] = {"topic": subscription.topic}
                    if (at := subscription.received) is not None:
                        params["recover"] = {"epoch": at.epoch, "offset": at.offset}
                    async with asyncio.timeout(self._timeout):
                        await connection.call("topic.subscribe", params, subscription.answered)
                if subscription.started is not None and not subscription.started.done():
                    subscription.started.set_result(None)
                return
            except ConnectionLost:
                return  # the next connection subscribes
            except TimeoutError:
                delay = 0.0
            except RpcError as error:
                if not error.passing:
                    self._forget(subscription)
                    subscription.end(error)
                    return
                delay = error.retry_after
            await asyncio.sleep(delay + self._backoff.delay(failures))

    async def _unsubscribe(self, topic: str, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._timeout), self._turn(topic):
                # Somebody may have subscribed anew meanwhile, which replaces the old subscription.
                if topic not in self._subscriptions:
                    await connection.call("topic.unsubscribe", {"topic": topic})
        except (HwError, TimeoutError) as error:
            log.debug("%s was not unsubscribed: %r", topic, error)


def _for_subscription(subscription: Subscription[Any], method: str, params: dict[str, Any]) -> bool:
    match method:
        case "topic.event":
            subscription.take(params["epoch"], [params])
        case "topic.events":
            subscription.take(params["epoch"], params["events"])
        case "topic.reset":
            subscription.reset(Position(params["epoch"], params["offset"]))
        case "topic.unsubscribed":
            subscription.end(Unsubscribed(subscription.topic, params["reason"]))
        case _:
            return False
    return True


class _Notifications:
    """What waits for one reader of notifications."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer: deque[Notification] = deque()
        self._filled = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    def put(self, notification: Notification) -> None:
        if self._ended:
            return
        if len(self._buffer) >= self._limit:
            self.end(SlowConsumer("notifications"))
            return
        self._buffer.append(notification)
        self._filled.set()

    def end(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            self._filled.set()

    async def next(self) -> Notification | None:
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._filled.clear()
            await self._filled.wait()
        return self._buffer.popleft()


class _Connect(connect):
    """The library's own retries and redirects are off; a refusal becomes `Refused`."""

    async def __aenter__(self) -> Any:
        try:
            return await super().__aenter__()
        except InvalidStatus as invalid:
            response = invalid.response
            try:
                problem = json.loads(response.body or b"{}")
            except ValueError:
                problem = {}
            raise Refused(response.status_code, problem, response.headers.get("Retry-After")) from None
