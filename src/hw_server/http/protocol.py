"""uvicorn's HTTP protocol with an end to its timeout: it takes a request's head for as long and as large as it comes, and a
connection costs a client next to nothing."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hw_server.observability.metrics import Metrics
from hw_server.settings import HttpSettings

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection when a request's head is not whole `http.header_timeout` seconds after it could begin (a new
    connection) or began (a later request of one that is kept), or when it comes in pieces of more than
    `http.max_header_bytes` together."""

    def __init__(self, *args: Any, settings: HttpSettings, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._refused = metrics.http_refused_headers
        self._in_head = False
        self._seen = 0  # bytes of a head that is not whole
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._settings.header_timeout, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Nearly every head comes whole, and so is neither timed nor counted.
        if self._in_head:
            self._seen += len(data)
            if self._seen > self._settings.max_header_bytes:
                self._refused.labels("too_large").inc()
                self.transport.write(TOO_LARGE)
                self.transport.close()
            elif self._timer is None:
                self._timer = self.loop.call_later(self._settings.header_timeout, self._give_up)

    def on_message_begin(self) -> None:
        self._in_head, self._seen = True, 0
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
        self._refused.labels("late").inc()
        self.transport.close()
