"""uvicorn's sans-IO WebSocket protocol with a frame reader of our own (RFC 6455, section 5): a message goes straight to the
connection's owner, a frame straight to the transport, and no input costs more than its share of a turn of the event loop. The
handshake, the answer to a close frame and keep-alive stay uvicorn's."""

import struct
from typing import Any, Protocol, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import (  # type: ignore[attr-defined]
    Close,
    Frame,
    Opcode,
    apply_mask,
)

from hw_server.runtime.hang_up import HangUpWatch
from hw_server.ws.codes import CloseCode

TEXT, CONTROL, MASKED = 0x81, 0x88, 0x80  # a final text frame, the first control frame, the bit of a client's mask
CONTINUATION, LAST_CONTINUATION, FIRST_TEXT, BINARY, FIRST_BINARY = 0x00, 0x80, 0x01, 0x82, 0x02
CLOSE, PING, PONG = 0x88, 0x89, 0x8A
MAX_CONTROL_PAYLOAD = 125  # bytes (RFC 6455, section 5.5)
FRAMES_PER_TURN = 64  # read before other connections have their turn
MAX_FRAGMENTS = 1024  # of one message
CONTROL_RATE = 10.0  # control frames a second; a burst is allowed
CONTROL_BURST = 100
CLOSE_TIMEOUT = 2.0  # seconds for the peer to answer a close frame
MAX_DISCARDED = 1_048_576  # bytes read and dropped after the connection failed
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
PROTOCOL = "hw.protocol"  # the scope's key of the connection's protocol object


def text_frame(payload: bytes) -> bytes:
    """A whole unmasked text frame."""
    size = len(payload)
    if size < 126:
        return b"\x81" + bytes((size,)) + payload
    if size < 65536:
        return b"\x81\x7e" + struct.pack("!H", size) + payload
    return b"\x81\x7f" + struct.pack("!Q", size) + payload


class Receiver(Protocol):
    """The owner of a connection. `ready` is whether it takes another message now; `resume` is for it to call once it does."""

    ready: bool

    def on_message(self, data: bytes) -> None:
        """Takes a text message in valid UTF-8."""

    def on_writing(self, paused: bool) -> None:
        """Is told when the client has stopped reading, and when it reads again."""

    def close(self, code: CloseCode) -> None:
        """Closes the connection for something that the client did."""


class DirectWebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection. The scope of the handshake holds it under `PROTOCOL`; from `deliver_to` on messages go to a `Receiver`
    instead of ASGI's `receive`."""

    # Class attributes: what a socket does not use it does not pay for.
    receiver: Receiver | None = None
    _partial: bytearray | None = None  # the beginning of a frame
    _needed = 0  # bytes of the whole frame, as far as they are known
    _held = b""  # data that waits for a later turn, from `_offset` on
    _offset = 0
    _fragments: list[bytes] | None = None  # of a message that is not complete
    _fragment_bytes = 0
    _control_spent = 0.0  # the loop's time until which the allowed control frames are spent
    _watch: HangUpWatch | None = None
    _ended = False  # after a close frame or a failure: whatever comes is dropped (RFC 6455, sections 1.4 and 7.1.7)
    _discarded = 0

    def data_received(self, data: bytes) -> None:
        if self._ended:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED:
                self.transport.abort()
        elif not self.handshake_initiated:
            self._read_handshake(data)
        elif self.receiver is None or self._held or not self.receiver.ready:
            # Nothing is handled before the handshake is answered, and nothing is read meanwhile.
            self._held = self._held[self._offset :] + data
            self._offset = 0
            self.pause()
        elif self._partial is None:
            self._read(data, 0)
        else:
            self._partial += data
            if len(self._partial) >= self._needed:
                data, self._partial = bytes(self._partial), None
                self._read(data, 0)

    def _read_handshake(self, data: bytes) -> None:
        """The request comes whole, from uvicorn's HTTP protocol; the library says nothing where it cannot use it."""
        super().data_received(data)
        if not self.handshake_initiated:
            self._ended = True
            self.transport.write(BAD_REQUEST)
            self.transport.close()

    def _read(self, data: bytes, position: int) -> None:
        """Hands on whole frames; keeps the rest."""
        receiver, end, frames = self.receiver, len(data), 0
        assert receiver is not None
        while end - position >= 2:
            if frames == FRAMES_PER_TURN or not (receiver.ready or self.close_sent):
                self._held, self._offset = data, position
                self.pause()
                if frames == FRAMES_PER_TURN:
                    self.loop.call_soon(self._continue)
                return
            kind, second, start = data[position], data[position + 1], position + 2
            size = second & 0x7F
            if size == 126:
                start += 2
                size = int.from_bytes(data[start - 2 : start], "big")
            elif size == 127:
                start += 8
                size = int.from_bytes(data[start - 8 : start], "big")
            if start > end:
                self._needed = start - position
                break
            if kind != TEXT or second < MASKED or start - position > 2 or self._fragments is not None:
                failure = self._failure(kind, second, start - position, size)
                if failure is not None:
                    receiver.close(failure)
                    return
            following = start + 4 + size
            if following > end:
                self._needed = following - position
                break
            payload = apply_mask(data[start + 4 : following], data[start : start + 4])
            if kind == TEXT:
                self._deliver(payload)
            elif kind >= CONTROL:
                self._control(kind, payload, data[position:following])
            else:
                self._add_fragment(kind, payload)
            if self._ended:
                return
            position = following
            frames += 1
        else:
            self._needed = 2
        if position < end:
            self._partial = bytearray(data[position:])
            self._needed = max(self._needed, 2)

    def _continue(self) -> None:
        """Continues with held data in a later iteration of the event loop."""
        if self._ended or self.receiver is None or not (self.receiver.ready or self.close_sent):
            return
        data, offset = self._held, self._offset
        self._held, self._offset = b"", 0
        if data:
            self._read(data, offset)
        if not self._held:
            self._resume_reading()

    def _failure(self, kind: int, second: int, header: int, size: int) -> CloseCode | None:
        """What is wrong with a frame by its header (RFC 6455, sections 5.2, 5.4 and 5.5)."""
        minimal = header == 2 or (header == 4 and size > 125) or (header == 10 and 65_535 < size < 2**63)
        if second < MASKED or kind & 0x70 or not minimal:
            return CloseCode.PROTOCOL_ERROR
        if kind & 0x0F >= 8:
            known = kind in (CLOSE, PING, PONG) and size <= MAX_CONTROL_PAYLOAD
            return None if known else CloseCode.PROTOCOL_ERROR
        continues = kind & 0x0F == 0
        if kind & 0x0F > 2 or continues != (self._fragments is not None):
            return CloseCode.PROTOCOL_ERROR
        if kind in (BINARY, FIRST_BINARY):
            return CloseCode.BINARY_FRAME
        if size + (self._fragment_bytes if continues else 0) > self.config.ws_max_size:
            return CloseCode.MESSAGE_TOO_BIG
        return None

    def _deliver(self, message: bytes) -> None:
        if self.close_sent:
            return
        assert self.receiver is not None
        if not message.isascii():
            try:
                message.decode()
            except UnicodeDecodeError:
                self.receiver.close(CloseCode.INVALID_DATA)
                return
        self.receiver.on_message(message)

    def _add_fragment(self, kind: int, payload: bytes) -> None:
        if self._fragments is None:
            self._fragments, self._fragment_bytes = [], 0
        self._fragments.append(payload)
        self._fragment_bytes += len(payload)
        if kind == LAST_CONTINUATION:
            message, self._fragments = b"".join(self._fragments), None
            self._deliver(message)
        elif len(self._fragments) > MAX_FRAGMENTS:
            assert self.receiver is not None
            self.receiver.close(CloseCode.FLOODING)

    def _control(self, kind: int, payload: bytes, frame: bytes) -> None:
        assert self.receiver is not None
        now = self.loop.time()
        self._control_spent = max(self._control_spent, now) + 1 / CONTROL_RATE
        if kind == CLOSE:
            self._close_received(payload, frame)
        elif self._control_spent - now > CONTROL_BURST / CONTROL_RATE:
            self.receiver.close(CloseCode.FLOODING)
        elif kind == PING:
            if self.open:
                self.transport.write(bytes((PONG, len(payload))) + payload)
        elif self.pending_ping_payload is not None:
            self.handle_pong(Frame(Opcode.PONG, payload))

    def _close_received(self, payload: bytes, frame: bytes) -> None:
        assert self.receiver is not None
        try:
            Close.parse(payload)
        except ProtocolError:
            self.receiver.close(CloseCode.PROTOCOL_ERROR)
        except UnicodeDecodeError:
            self.receiver.close(CloseCode.INVALID_DATA)
        else:
            super().data_received(frame)
            if not self.close_sent:
                # uvicorn has answered and waits until that is sent, which a client may refuse to read.
                self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)
        self._drop_input()

    def _drop_input(self) -> None:
        self._ended = True
        self._partial = self._fragments = None
        self._held, self._offset = b"", 0

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        del self.request
        if hasattr(self, "scope"):
            cast("dict[str, Any]", self.scope)[PROTOCOL] = self

    def deliver_to(self, receiver: Receiver) -> None:
        """From now on messages go to `receiver`. Call after the handshake is accepted; an open socket keeps nothing of the
        handshake."""
        del self.response
        self.scope["headers"] = []
        if self.disconnected:
            return
        self.receiver = receiver
        if self._held:
            self.loop.call_soon(self._continue)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        # Breaks reference cycles, which would keep all of it until a long garbage collection: the library's parser is a generator
        # that holds its object, and so does the traceback of what it raised.
        self.receiver = None
        self.conn.parser.close()
        failure: BaseException | None = self.conn.handshake_exc
        while failure is not None:
            failure.__traceback__ = None
            failure = failure.__cause__ or failure.__context__

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.receiver is not None:
            self.receiver.on_writing(paused=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.receiver is not None:
            self.receiver.on_writing(paused=False)

    def keepalive_timeout(self) -> None:
        """uvicorn's handler waits until the write buffer is sent; this closes at once."""
        self.pong_timer = self.pending_ping_payload = None
        if self.receiver is not None:
            self.receiver.close(CloseCode.PING_TIMEOUT)

    @property
    def open(self) -> bool:
        return not (self.close_sent or self.disconnected or self.transport.is_closing())

    @property
    def unsent(self) -> int:
        """Bytes in the write buffer: the client has not received them yet."""
        return self.transport.get_write_buffer_size()

    def write_frame(self, frame: bytes) -> None:
        self.transport.write(frame)

    def pause(self) -> None:
        if not self.read_paused and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()
            if self._watch is None:
                self._watch = HangUpWatch(self.transport)
            self._watch.pause()

    def resume(self) -> None:
        """The receiver is ready again."""
        if self._held:
            self.loop.call_soon(self._continue)
        else:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()
            if self._watch is not None:
                self._watch.resume()

    def refused(self) -> None:
        """The handshake was answered with an HTTP error; without this uvicorn logs that it is incomplete."""
        self.handshake_complete = self._ended = True

    def close(self, code: int, reason: str, *, failed: bool) -> None:
        """Sends a close frame; aborts the connection when the peer has not answered it in time. After a failure nothing more is
        read, not even the answer: closing both ways at once would take the close frame away from a client that still
        sends."""
        if not self.open:
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if failed:
            self._drop_input()
            self.transport.write_eof()
        self._resume_reading()
        if self._held:
            self.loop.call_soon(self._continue)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)
