"""One socket: its calls in progress, its messages out."""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog
from prometheus_client import Counter
from pydantic_core import to_json

from hw_server.auth import Principal
from hw_server.operations import Call
from hw_server.ratelimit import Rate
from hw_server.settings import WebSocketSettings
from hw_server.ws.codes import FAILURES, CloseCode
from hw_server.ws.protocol import DirectWebSocketProtocol, text_frame

log = structlog.get_logger("ws")

MAX_REFUSALS = 200  # by the rate limit in a row, after which the socket is closed
MAX_HEADER = 10  # bytes of a frame's header
UNAUTHENTICATED_BYTES = 65_536  # of answers to a socket that has not signed in, in its whole life

Handle = Callable[["WebSocketConnection", bytes], Coroutine[Any, Any, None]]


class Backlog(Protocol):
    """Events that wait for a client that does not read; `size` in bytes."""

    size: int

    def add(self, channel: Any, keyed: Any) -> int: ...

    def discard(self, channel: Any) -> None: ...

    def flush(self, connection: "WebSocketConnection") -> None:
        """Sends them, once it reads again."""


class WebSocketConnection:
    """Belongs to the hub from accept to disconnect. `handle` answers one message; `principal` is None until the sign-in;
    `outcome` says in metrics how the connection ended; `ready` is whether another message is taken now; `messages` limits
    them before they are parsed; `calls` are in progress; `backlog` is what is sent once the client reads again."""

    __slots__ = (
        "_answered",
        "_handle",
        "_in_progress",
        "_messages",
        "_pending",
        "_protocol",
        "_refusals",
        "_sent",
        "_settings",
        "_spent",
        "_stalled",
        "backlog",
        "calls",
        "client_ip",
        "id",
        "opened",
        "outcome",
        "principal",
        "ready",
        "signing_in",
        "topics",
        "user_agent",
        "warned",
    )

    def __init__(
        self,
        handle: Handle,
        settings: WebSocketSettings,
        messages: Rate,
        sent: Counter,
        protocol: DirectWebSocketProtocol,
        client_ip: str | None,
        user_agent: str | None,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.client_ip = client_ip
        self.user_agent = user_agent
        self.principal: Principal | None = None
        self.opened = time.monotonic()
        self.topics: dict[str, Any] | None = (
            None  # names of the topics it is subscribed to -> what their owner keeps of each
        )
        self.warned = False  # whether `session.expiring` was sent for the present token
        self.outcome = "closed_by_client"
        self.ready = True
        self.signing_in = False
        self.calls: set[Call] | None = None
        self.backlog: Backlog | None = None
        self._handle = handle
        self._settings = settings
        self._messages = messages
        self._sent = sent
        self._protocol = protocol
        self._in_progress: set[asyncio.Task[None]] | None = None
        self._refusals = 0
        self._spent = 0.0  # time.monotonic() until which the allowed messages are spent
        self._pending = 0  # bytes of answers that wait for the rest of their batch
        self._answered = 0  # bytes sent before the sign-in
        self._stalled: asyncio.TimerHandle | None = None  # runs while the client does not read

    # In

    def on_message(self, data: bytes) -> None:
        now, messages = time.monotonic(), self._messages
        self._spent = max(self._spent, now) + messages.interval
        if self._spent > now + messages.tolerance:
            self.close(CloseCode.FLOODING)
            return
        if self._in_progress is None:
            self._in_progress = set()
        task = asyncio.get_running_loop().create_task(self._handle(self, data))
        self._in_progress.add(task)
        task.add_done_callback(self._ended)
        if len(self._in_progress) >= self._settings.max_in_flight:
            self.ready = False  # further frames stay buffered, and reading pauses, until a call ends

    def _ended(self, task: "asyncio.Task[None]") -> None:
        assert self._in_progress is not None
        self._in_progress.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("ws_call_failed", socket=self.id, exc_info=error)
        if not self.ready:
            self._resume()
        if not self._in_progress:
            self._in_progress = None

    def on_writing(self, paused: bool) -> None:
        """Nothing is read while answers wait for the client to read them; one that never does is closed."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if paused:
            self.ready = False
            seconds = self._settings.ping_interval
            self._stalled = asyncio.get_running_loop().call_later(seconds, self.close, CloseCode.SLOW_CONSUMER)
        else:
            if self.backlog is not None:
                self.backlog.flush(self)
            self._resume()

    def _resume(self) -> None:
        free = self._in_progress is None or len(self._in_progress) < self._settings.max_in_flight
        if free and self._stalled is None:
            self.ready = True
            self._protocol.resume()

    @property
    def busy(self) -> bool:
        return bool(self._in_progress)

    @property
    def open(self) -> bool:
        return self._protocol.open

    @property
    def closed(self) -> bool:
        """Whether the server has closed it, or it is lost."""
        return self._protocol.close_sent or self._protocol.disconnected

    def abandon(self) -> None:
        """After the connection ended: calls that only read are cancelled, changes run to their end."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        for call in self.calls or ():
            call.abandon()

    # Out

    def send(self, payload: bytes) -> None:
        """Sends one message."""
        if self.principal is None:
            self._answered += len(payload)
        self.send_frame(text_frame(payload))

    @property
    def room(self) -> bool:
        """Whether there is room for the answer to another call. Before the sign-in all answers
        together have `STRANGER_BYTES`."""
        if self.principal is None:
            return self._answered + self._pending < UNAUTHENTICATED_BYTES
        return self._pending + self._protocol.unsent < self._settings.max_pending_bytes

    def takes(self, size: int) -> bool:
        """Whether an answer of so many bytes can be sent without closing the connection."""
        return self._pending + self._protocol.unsent + size + MAX_HEADER <= self._settings.send_buffer_bytes

    def hold(self, size: int) -> None:
        """Counts bytes of an answer that is not sent yet; a negative number once it is."""
        self._pending += size

    def send_frame(self, frame: bytes) -> None:
        """Writes a whole frame, or closes a client that does not read. Nothing is dropped silently."""
        if self.write_event(frame):
            self._sent.inc()

    def write_event(self, frame: bytes) -> bool:
        """`send_frame` for one of many receivers, whose sender counts them together; whether it was written."""
        protocol = self._protocol
        if not protocol.open:
            return False
        if protocol.unsent + len(frame) > self._settings.send_buffer_bytes:
            self.close(CloseCode.SLOW_CONSUMER)
            return False
        protocol.write_frame(frame)
        return True

    @property
    def stalled(self) -> bool:
        """Whether the client reads more slowly than it is sent to."""
        return self._stalled is not None

    def check_backlog(self) -> None:
        """Closes a client whose backlog has more than is kept for it."""
        size = self.backlog.size if self.backlog is not None else 0
        if self._protocol.unsent + size > self._settings.send_buffer_bytes:
            self.close(CloseCode.SLOW_CONSUMER)

    def notify(self, method: str, params: dict[str, Any]) -> None:
        self.send_frame(text_frame(to_json({"jsonrpc": "2.0", "method": method, "params": params})))

    def close(self, code: CloseCode) -> None:
        if self._protocol.open:
            self.outcome = code.name.lower()
            self._protocol.close(code, self.outcome, failed=code in FAILURES)

    def count_refusal(self) -> None:
        """Closes a client that goes on after `MAX_REFUSALS` refusals by the rate limit in a row."""
        self._refusals += 1
        if self._refusals >= MAX_REFUSALS:
            self.close(CloseCode.FLOODING)

    def reset_refusals(self) -> None:
        self._refusals = 0
