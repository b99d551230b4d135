"""uvicorn's HTTP protocol with limits on the time and size of request headers, which uvicorn lacks."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hw_server.observability.metrics import Metrics
from hw_server.settings import HttpSettings

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request headers are not complete `http.header_timeout` seconds after the connection was made
    or, for a later request, after they began; answers 431 to headers that come in several segments of more than
    `http.max_header_bytes` together."""

    def __init__(self, *args: Any, settings: HttpSettings, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._refused = metrics.http_refused_headers
        self._in_headers = False
        self._received = 0  # bytes of headers that are not complete
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._settings.header_timeout, self._time_out)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Headers nearly always come in one segment, and then cost no timer and no count.
        if self._in_headers:
            self._received += len(data)
            if self._received > self._settings.max_header_bytes:
                self._refused.labels("too_large").inc()
                self.transport.write(TOO_LARGE)
                self.transport.close()
            elif self._timer is None:
                self._timer = self.loop.call_later(self._settings.header_timeout, self._time_out)

    def on_message_begin(self) -> None:
        self._in_headers, self._received = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._refused.labels("late").inc()
        self.transport.close()
