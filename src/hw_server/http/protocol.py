"""uvicorn's HTTP protocol with an end to its patience: it waits for the head of a request for as long as it takes, and a
connection costs a client next to nothing."""

import asyncio
from typing import Any

from prometheus_client import Counter
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection, and counts it in `late`, when a request's head is not whole `head_timeout` seconds after it
    could begin (a new connection) or began (a later request of one that is kept)."""

    def __init__(self, *args: Any, head_timeout: float, late: Counter, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout = head_timeout
        self._late = late
        self._in_head = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._head_timeout, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Nearly every head comes whole, and so without a timer.
        if self._in_head and self._timer is None:
            self._timer = self.loop.call_later(self._head_timeout, self._give_up)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._late.inc()
        self.transport.close()
