"""uvicorn's HTTP protocol with limits, which it lacks: every state of a connection ends by a timer, and what a client sends
ahead, leaves unread or never finishes costs a bounded number of bytes. Also the rules of RFC 9112 that llhttp leaves to the
server."""

import asyncio
import re
from collections import Counter
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from websockets.http11 import MAX_LINE_LENGTH

from hw_server.http.addresses import unmapped, within
from hw_server.http.middleware import CALL
from hw_server.observability.metrics import Metrics
from hw_server.ratelimit import client_key
from hw_server.runtime.hang_up import HangUpWatch
from hw_server.settings import HttpSettings

MAX_HEADERS = 128
MAX_PARAMETERS = 256  # of a query: FastAPI parses each, also on routes that use none
PIECE = 2048  # bytes parsed before the length of the pipeline is checked again
TURN = 16_384  # bytes parsed before other connections have their turn: chunks of one byte cost a callback per six bytes
MAX_QUEUED = 8  # requests, besides the one in progress and those of one piece
DRAIN_BYTES = 1_048_576  # of a body whose request was answered before it was whole, or after an error
DRAIN_SECONDS = 2.0
HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")


def _response(status: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status


BAD_REQUEST = _response(b"400 Bad Request")
TIMEOUT = _response(b"408 Request Timeout")
TOO_LARGE = _response(b"431 Request Header Fields Too Large")
BAD_VERSION = _response(b"505 HTTP Version Not Supported")
TOO_MANY = _response(b"503 Service Unavailable")


def _send_without_chunks(cycle: RequestResponseCycle) -> None:
    """A client of HTTP/1.0 knows no chunks: the end of the connection is the end of a body without a length (RFC 9112,
    sections 6.1 and 6.3)."""
    send = cycle.send
    sized = False

    async def send_unframed(message: Any) -> None:
        nonlocal sized
        if message["type"] == "http.response.start":
            sized = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if not sized:
                cycle.chunked_encoding = False
        elif not sized:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = send_unframed  # type: ignore[method-assign]


class Refused(Exception):
    """Stops the parser from one of its callbacks."""


class PipelineFlow(FlowControl):
    """`held` keeps requests from resuming reading that the pipeline has paused. A disconnect is noticed also while reading is
    paused."""

    held = False

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.watch = HangUpWatch(transport)

    def pause_reading(self) -> None:
        super().pause_reading()
        self.watch.pause()

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()
            self.watch.resume()


class Peers:
    """How many HTTP connections each client address holds: not sockets, which have limits of their own, and not those of trusted
    proxies, which bring many clients."""

    def __init__(self, settings: HttpSettings) -> None:
        self._most = settings.max_connections_per_address
        self._trusted = settings.trusted_proxies
        self._held: Counter[str] = Counter()

    def join(self, client: tuple[str, int] | None) -> str | None:
        """Counts a connection; returns what to tell `leave`."""
        address = unmapped(client[0]) if client is not None else None
        if address is None or within(address, self._trusted):
            return None
        peer = client_key(address)
        self._held[peer] += 1
        return peer

    def crowded(self, peer: str | None) -> bool:
        return peer is not None and self._held[peer] > self._most

    def leave(self, peer: str | None) -> None:
        if peer is not None:
            self._held[peer] -= 1
            if not self._held[peer]:
                del self._held[peer]


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. What passes a limit is answered without a problem document, then the connection is closed; `metrics` counts
    it."""

    flow: PipelineFlow

    def __init__(self, *args: Any, settings: HttpSettings, metrics: Metrics, peers: Peers, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._peers = peers
        self._peer: str | None = None  # whom this connection counts for
        self._settings = settings
        self._refused_headers = metrics.http_refused_headers
        self._closed = metrics.http_closed
        self._in_headers = False
        self._in_body = False
        self._hosts = 0  # `Host` fields of this request
        self._authorized = False  # whether it has an `Authorization` field
        self._host: bytes | None = None  # the last one that was looked at
        self._uncounted = 0  # bytes of headers, or of a body's framing since its last byte
        self._timer: asyncio.TimerHandle | None = None  # of the headers, the body or the drain
        self._write_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None  # the others wait in the pipeline
        self._held = b""  # read, but not parsed: the pipeline is full, or this turn has ended
        self._draining = False
        self._dropped = 0  # bytes
        self._ended = False  # nothing more is parsed
        self._refusal: bytes | None = None  # why a callback stopped the parser
        self._last_response: bytes | None = None  # sent after the responses to the requests before

    # The connection

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = PipelineFlow(transport)
        self._peer = self._peers.join(self.client)
        if len(self.connections) > self._settings.max_connections or self._peers.crowded(self._peer):
            transport.write(TOO_MANY)
            self._close("too_many")
            return
        self._timer = self.loop.call_later(self._settings.header_timeout, self._headers_are_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._stop_timer()
        self.flow.watch.stop()
        self.resume_writing()
        running, self._running = self._running, None
        super().connection_lost(exc)
        # uvicorn tells only the last of a pipeline that the client has gone.
        for cycle in (running, *(queued for queued, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        if running is not None and not running.response_complete:
            call = running.scope.get(CALL)
            if call is not None:
                call.abandon()  # type: ignore[attr-defined]

    def _leave(self) -> None:
        self._peers.leave(self._peer)
        self._peer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._settings.write_timeout, self._abort, "unread")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # In

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._ended:
            self._drop(len(data))
        elif self._held:
            self._held += data
        else:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        position, size = 0, len(data)
        while position < size:
            if len(self.pipeline) >= MAX_QUEUED or position >= TURN:
                self._held = data[position:]
                self.flow.pause_reading()
                self.flow.held = True
                self.loop.call_soon(self._take_up)
                return
            piece = data if size <= PIECE else data[position : position + PIECE]
            self._uncounted += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                self._upgrade(data[position + upgrade.args[0] :])
                return
            except httptools.HttpParserError:
                self._refuse(self._refusal or BAD_REQUEST)
                return
            position += len(piece)
            if self._in_headers or self._in_body:
                if self._draining:
                    self._drop(len(piece))
                if self._uncounted > self._settings.max_header_bytes:
                    self._refuse(TOO_LARGE)
                if self._ended:
                    return
        self._set_timer()

    def _take_up(self) -> None:
        """Continues to parse held data where the pipeline has room for another request."""
        if not self._held or self._ended or len(self.pipeline) >= MAX_QUEUED or self.transport.is_closing():
            return
        data, self._held = self._held, b""
        self.flow.held = False
        if self.flow.read_paused and not self.pipeline:
            self.flow.resume_reading()
        self._unset_keepalive_if_required()  # set by the response before the request that waited here
        self._feed(data)

    def _set_timer(self) -> None:
        """Headers nearly always come in one segment, and their body with them: then no timer is set."""
        if self._timer is not None or self.pipeline or self.transport.is_closing():
            return  # nothing is read while requests wait in the pipeline: the client cannot be late
        if self._in_body:
            self._timer = self.loop.call_later(self._settings.body_timeout, self._body_is_late)
        elif self._in_headers or (self._running is None and self.timeout_keep_alive_task is None):
            # The second case: empty lines before a request do not begin it (RFC 9112, section 2.2).
            self._timer = self.loop.call_later(self._settings.header_timeout, self._headers_are_late)

    def on_message_begin(self) -> None:
        self._in_headers, self._hosts, self._authorized, self._uncounted = True, 0, False, 0
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()  # set by the end of a body that came with this request
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_headers:
            return  # a trailer: RFC 9110, section 6.5.1 lets a server drop it; as a header it would be believed
        name = name.lower()
        if name == b"host":
            self._hosts += 1
            if value != self._host:
                if HOST.fullmatch(value) is None:
                    self._stop_parser(BAD_REQUEST)
                self._host = value
        elif name == b"authorization":
            if self._authorized:
                # One is allowed (RFC 9110, section 5.3); of two, each reader may believe another.
                self._stop_parser(BAD_REQUEST)
            self._authorized = True
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._stop_timer()
        version = self.parser.get_http_version()
        if len(self.headers) > MAX_HEADERS or self._uncounted > self._settings.max_header_bytes:
            self._stop_parser(TOO_LARGE)
        if self.url.count(b"&") >= MAX_PARAMETERS:
            self._stop_parser(TOO_LARGE)
        if version not in ("1.1", "1.0"):
            self._stop_parser(BAD_VERSION)
        if self._hosts != 1 and (self._hosts > 1 or version == "1.1"):
            self._stop_parser(BAD_REQUEST)  # RFC 9112, section 3.2
        if self.url[:1] != b"/":
            self._use_target()
        upgrade = self.parser.should_upgrade()
        if upgrade:
            self._check_upgrade(version)
        self._in_headers, self._in_body, self._uncounted = False, True, 0
        super().on_headers_complete()
        if version == "1.0":
            _send_without_chunks(self.cycle)
        if self.expect_100_continue or (upgrade and not self._should_upgrade()):
            # The client may never send the body, and llhttp reads none with an upgrade: close after the response.
            self.cycle.keep_alive = False

    def _use_target(self) -> None:
        """A target in absolute-form names the host itself; `*` is the server as a whole (RFC 9112, sections 3.2.2 and 3.2.4)."""
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":
            self.url = b"/*"
            return
        try:
            target = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            self._stop_parser(BAD_REQUEST)
        if target.schema not in (b"http", b"https") or target.host is None or target.userinfo is not None:
            self._stop_parser(BAD_REQUEST)
        host = target.host if b":" not in target.host else b"[%s]" % target.host
        authority = host if target.port is None else b"%s:%d" % (host, target.port)
        self.headers[:] = [(b"host", authority), *(item for item in self.headers if item[0] != b"host")]
        self.url = (target.path or b"/") + (b"?" + target.query if target.query else b"")

    def _check_upgrade(self, version: str) -> None:
        """After the headers of an upgrade llhttp reads no body, and the handshake's parser takes shorter lines."""
        for name, value in self.headers:
            if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
                self._stop_parser(BAD_REQUEST)
        if self._should_upgrade():
            longest = max(len(name) + len(value) for name, value in self.headers)
            if max(longest, len(self.url) + 16) + 8 > MAX_LINE_LENGTH:
                self._stop_parser(TOO_LARGE)
            # With answers unread the timer of this protocol would still end the connection.
            if version != "1.1" or self._busy or self.flow.write_paused:
                self._stop_parser(BAD_REQUEST)

    def on_body(self, body: bytes) -> None:
        self._uncounted = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._timer is not None:
            self._stop_timer()
        if self._draining:
            self._draining = False
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        super().on_message_complete()

    def _upgrade(self, rest: bytes) -> None:
        if not self._should_upgrade():
            self._ended = True  # answered as if no upgrade had been asked for; what follows cannot be parsed
            return
        self._leave()
        self._stop_timer()
        self.flow.watch.stop()
        self.handle_websocket_upgrade()
        del self.parser  # it holds this protocol, which would live on beside the socket's
        if self.transport.is_closing():
            self._closed.labels("invalid").inc()  # the library has refused the handshake
        elif rest:
            self.transport.get_protocol().data_received(rest)  # type: ignore[attr-defined]

    # Out

    @property
    def _busy(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._running = None
        if self._last_response is not None and not self.pipeline and not self.transport.is_closing():
            self._send_last(self._last_response)
            return
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.pipeline:
            self.flow.pause_reading()
        if self._in_body and self._running is None:
            # The response was sent before the body ended: a bounded rest is discarded, which costs less than a new connection.
            self._unset_keepalive_if_required()
            self._stop_timer()
            self._draining, self._dropped = True, 0
            self._timer = self.loop.call_later(DRAIN_SECONDS, self._close, "body")
        self._take_up()
        if not self._held and (self._in_headers or self._in_body):
            self._set_timer()

    # Ends

    def _stop_parser(self, response: bytes) -> None:
        self._refusal = response
        raise Refused

    def _refuse(self, response: bytes) -> None:
        """Nothing more is read as HTTP; requests before this one are answered first."""
        if response is TOO_LARGE:
            self._refused_headers.labels("too_large").inc()
        else:
            self._closed.labels("invalid").inc()
        self._ended = True
        self._stop_timer()
        broken = self.cycle if self._in_body else None
        if broken is not None:
            broken.disconnected = True
            broken.message_event.set()
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()
        if self._busy and self._running is not broken:
            self._last_response = response
        elif broken is not None and broken.response_started:
            self.transport.close()
        else:
            self._send_last(response)

    def _send_last(self, response: bytes) -> None:
        """Closing at once would reset the connection of a client that still sends, before it reads the response (RFC 9112,
        section 9.6)."""
        self._ended, self._held, self._dropped = True, b"", 0
        self.flow.held = False
        self.flow.resume_reading()
        self._stop_timer()
        if self.transport.is_closing():
            return
        self.transport.write(response)
        self.transport.write_eof()
        self._timer = self.loop.call_later(DRAIN_SECONDS, self.transport.abort)

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > DRAIN_BYTES:
            self._close("body")

    def _close(self, reason: str) -> None:
        self._ended = True
        self._closed.labels(reason).inc()
        self.transport.close()

    def _abort(self, reason: str) -> None:
        self._ended = True
        self._closed.labels(reason).inc()
        self.transport.abort()

    def _headers_are_late(self) -> None:
        self._timer = None
        self._refused_headers.labels("late").inc()
        self._ended = True
        self.transport.close()

    def _body_is_late(self) -> None:
        self._timer = None
        self._refuse(TIMEOUT)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
