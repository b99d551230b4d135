"""One socket: sign-in, its calls in flight, its messages out."""

import asyncio
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog
from pydantic_core import to_json

from hw_server.auth import Principal
from hw_server.ws.codes import CloseCode
from hw_server.ws.protocol import DirectWebSocketProtocol, text_frame

if TYPE_CHECKING:
    from hw_server.ws.dispatcher import Dispatcher

log = structlog.get_logger("ws")

FLOOD = 200  # refusals by the rate limit in a row after which the socket is closed
CLOSE_TIMEOUT = 2.0  # seconds for the peer to answer a close


class WebSocketConnection:
    """Belongs to the hub from accept to disconnect. `principal` is None until the sign-in."""

    __slots__ = (
        "_backlog",
        "_dispatcher",
        "_in_flight",
        "_protocol",
        "_refused",
        "client_ip",
        "id",
        "opened",
        "outcome",
        "principal",
        "user_agent",
        "warned",
    )

    def __init__(
        self,
        dispatcher: "Dispatcher",
        protocol: DirectWebSocketProtocol,
        client_ip: str | None,
        user_agent: bytes | None,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.client_ip = client_ip
        self.user_agent = user_agent
        self.principal: Principal | None = None
        self.opened = time.monotonic()
        self.warned = False  # whether `session.expiring` was sent for the present token
        self.outcome = "closed_by_client"
        self._dispatcher = dispatcher
        self._protocol = protocol
        self._in_flight: set[asyncio.Task[None]] | None = None
        self._backlog: deque[bytes] | None = None
        self._refused = 0

    # In

    def on_message(self, data: bytes, is_text: bool) -> None:
        if not is_text:
            self.close(CloseCode.BINARY_FRAME)
            return
        if self._in_flight is not None and len(self._in_flight) >= self._dispatcher.max_in_flight:
            # What was read along with the last call waits; reading goes on when a call ends.
            if self._backlog is None:
                self._backlog = deque()
            self._backlog.append(data)
            self._protocol.pause()
            return
        self._begin(data)

    def on_control(self) -> None:
        """A client that sends pings and does not read the pongs would fill the memory."""
        if (too_big := self._protocol.too_big) is not None:
            self.outcome = (CloseCode.MESSAGE_TOO_BIG if too_big else CloseCode.PROTOCOL_ERROR).name.lower()
        elif self._protocol.open and self._protocol.unsent > self._dispatcher.send_buffer_bytes:
            self.outcome = CloseCode.SLOW_CONSUMER.name.lower()
            self._protocol.cut()

    def _begin(self, data: bytes) -> None:
        if self._in_flight is None:
            self._in_flight = set()
        task = asyncio.get_running_loop().create_task(self._dispatcher.handle(self, data))
        self._in_flight.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        assert self._in_flight is not None
        self._in_flight.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("ws_call_failed", socket=self.id, exc_info=error)
        if self._backlog:
            self._begin(self._backlog.popleft())
        elif self._backlog is not None:
            self._backlog = None
            self._protocol.resume()
        if not self._in_flight:
            self._in_flight = None

    @property
    def busy(self) -> bool:
        return bool(self._in_flight)

    def forget(self) -> None:
        """The socket is gone: calls in flight run to their end, what has not begun never does."""
        self._backlog = None

    # Out

    def send(self, payload: bytes) -> None:
        """Sends one message, or closes a client that does not read. Nothing is dropped silently."""
        protocol = self._protocol
        if not protocol.open:
            return
        if protocol.unsent + len(payload) > self._dispatcher.send_buffer_bytes:
            self.close(CloseCode.SLOW_CONSUMER)
            return
        protocol.write_frame(text_frame(payload))
        self._dispatcher.sent.inc()

    def notify(self, method: str, params: dict[str, Any]) -> None:
        self.send(to_json({"jsonrpc": "2.0", "method": method, "params": params}))

    def close(self, code: CloseCode) -> None:
        if self._protocol.open:
            self.outcome = code.name.lower()
            self._protocol.close(code, self.outcome, CLOSE_TIMEOUT)

    def close_soon(self, code: CloseCode) -> None:
        """Closes after what is about to be sent; before the handshake is answered nothing is to be closed."""
        asyncio.get_running_loop().call_later(0.05, self.close, code)

    def limited(self, refused: bool) -> None:
        """Counts refusals by the rate limit; a client that keeps on is closed."""
        self._refused = self._refused + 1 if refused else 0
        if self._refused >= FLOOD:
            self.close(CloseCode.FLOODING)
