"""One socket: its calls in progress, its messages out."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from prometheus_client import Counter
from pydantic_core import to_json

from hw_server.auth import Principal
from hw_server.settings import WebSocketSettings
from hw_server.ws.codes import CloseCode
from hw_server.ws.protocol import DirectWebSocketProtocol, text_frame

log = structlog.get_logger("ws")

MAX_REFUSALS = 200  # by the rate limit in a row, after which the socket is closed
CLOSE_TIMEOUT = 2.0  # seconds for the peer to answer a close frame

Handle = Callable[["WebSocketConnection", bytes], Coroutine[Any, Any, None]]


class WebSocketConnection:
    """Belongs to the hub from accept to disconnect. `handle` answers one message; `principal` is None until the sign-in;
    `outcome` says in metrics how the connection ended."""

    __slots__ = (
        "_backlog",
        "_handle",
        "_in_progress",
        "_protocol",
        "_refusals",
        "_sent",
        "_settings",
        "client_ip",
        "id",
        "opened",
        "outcome",
        "principal",
        "topics",
        "user_agent",
        "warned",
    )

    def __init__(
        self,
        handle: Handle,
        settings: WebSocketSettings,
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
        self.topics: set[str] | None = None  # names of the topics it is subscribed to
        self.warned = False  # whether `session.expiring` was sent for the present token
        self.outcome = "closed_by_client"
        self._handle = handle
        self._settings = settings
        self._sent = sent
        self._protocol = protocol
        self._in_progress: set[asyncio.Task[None]] | None = None
        self._backlog: deque[bytes] | None = None
        self._refusals = 0

    # In

    def on_message(self, data: bytes, is_text: bool) -> None:
        if not is_text:
            self.close(CloseCode.BINARY_FRAME)
            return
        if self._in_progress is not None and len(self._in_progress) >= self._settings.max_in_flight:
            # Frames read with the last call are queued until a call ends; nothing more is read until then.
            if self._backlog is None:
                self._backlog = deque()
            self._backlog.append(data)
            self._protocol.pause()
            return
        self._begin(data)

    def on_control(self) -> None:
        """After the library may have answered a control frame by itself: pongs that the client does not read fill the buffer,
        too."""
        if (too_big := self._protocol.too_big) is not None:
            self.outcome = (CloseCode.MESSAGE_TOO_BIG if too_big else CloseCode.PROTOCOL_ERROR).name.lower()
        elif self._protocol.open and self._protocol.unsent > self._settings.send_buffer_bytes:
            self.outcome = CloseCode.SLOW_CONSUMER.name.lower()
            self._protocol.abort()

    def _begin(self, data: bytes) -> None:
        if self._in_progress is None:
            self._in_progress = set()
        task = asyncio.get_running_loop().create_task(self._handle(self, data))
        self._in_progress.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        assert self._in_progress is not None
        self._in_progress.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("ws_call_failed", socket=self.id, exc_info=error)
        if self._backlog:
            self._begin(self._backlog.popleft())
        elif self._backlog is not None:
            self._backlog = None
            self._protocol.resume()
        if not self._in_progress:
            self._in_progress = None

    @property
    def busy(self) -> bool:
        return bool(self._in_progress)

    def discard_backlog(self) -> None:
        """After the connection was lost: calls in progress run to their end, queued ones never begin."""
        self._backlog = None

    # Out

    def send(self, payload: bytes) -> None:
        """Sends one message."""
        self.send_frame(text_frame(payload))

    def send_frame(self, frame: bytes) -> None:
        """Writes a whole frame, or closes a client that does not read. Nothing is dropped silently."""
        protocol = self._protocol
        if not protocol.open:
            return
        if protocol.unsent + len(frame) > self._settings.send_buffer_bytes:
            self.close(CloseCode.SLOW_CONSUMER)
            return
        protocol.write_frame(frame)
        self._sent.inc()

    def write_event(self, frame: bytes) -> None:
        """`send_frame` for one of many receivers; the caller counts them together."""
        protocol = self._protocol
        if protocol.open:
            if protocol.unsent + len(frame) > self._settings.send_buffer_bytes:
                self.close(CloseCode.SLOW_CONSUMER)
            else:
                protocol.write_frame(frame)

    def notify(self, method: str, params: dict[str, Any]) -> None:
        self.send_frame(text_frame(to_json({"jsonrpc": "2.0", "method": method, "params": params})))

    def close(self, code: CloseCode) -> None:
        if self._protocol.open:
            self.outcome = code.name.lower()
            self._protocol.close(code, self.outcome, CLOSE_TIMEOUT)

    def count_refusal(self) -> None:
        """Closes a client that goes on after `MAX_REFUSALS` refusals by the rate limit in a row."""
        self._refusals += 1
        if self._refusals >= MAX_REFUSALS:
            self.close(CloseCode.FLOODING)

    def reset_refusals(self) -> None:
        self._refusals = 0
