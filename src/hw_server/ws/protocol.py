"""uvicorn's sans-IO WebSocket protocol (RFC 6455) with a shorter path in and out: a message goes straight to the connection's
owner, a frame straight to the transport. The handshake, control frames, close and keep-alive stay uvicorn's."""

import struct
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import PayloadTooBig
from websockets.frames import apply_mask  # type: ignore[attr-defined]

TEXT, CONTROL, MASKED = 0x81, 0x88, 0x80  # a final text frame, the first control frame, the bit of a client's mask
MAX_CONTROL_PAYLOAD = 125  # bytes (RFC 6455, section 5.5); the library refuses longer ones
PROTOCOL = "hw.protocol"  # the scope's key of the connection's protocol object


def text_frame(payload: bytes) -> bytes:
    """A whole unmasked text frame."""
    size = len(payload)
    if size < 126:
        return b"\x81" + bytes((size,)) + payload
    if size < 65536:
        return b"\x81\x7e" + struct.pack("!H", size) + payload
    return b"\x81\x7f" + struct.pack("!Q", size) + payload


class DirectWebSocketProtocol(WebSocketsSansIOProtocol):
    on_message: Callable[[bytes, bool], None] | None = None
    on_control: Callable[[], None] = staticmethod(lambda: None)
    _partial = b""  # the beginning of a frame
    _by_library = False  # whether the library parses all frames: after a fragmented message, or one it must refuse

    def data_received(self, data: bytes) -> None:
        """Whole text frames are parsed here; everything else goes, frame by frame, to the library."""
        # Data that comes before the handshake is answered may leave the library in the middle of a frame.
        self._by_library = self._by_library or (self.handshake_initiated and not self.handshake_complete)
        if self.on_message is None or self._by_library:
            super().data_received(data)
            self.on_control()
            return
        if self._partial:
            data, self._partial = self._partial + data, b""
        position, end = 0, len(data)
        while end - position >= 6:
            kind, size, start = data[position], data[position + 1] & 0x7F, position + 2
            if size == 126:
                size, start = int.from_bytes(data[start : start + 2], "big"), start + 2
            elif size == 127:
                if end - position < 14:
                    break
                size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
            following = start + 4 + size
            control = kind >= CONTROL and data[position + 1] >= MASKED and size <= MAX_CONTROL_PAYLOAD
            if not control and (kind != TEXT or data[position + 1] < MASKED or size > self.config.ws_max_size):
                self._by_library = True
                super().data_received(data[position:])
                self.on_control()
                return
            if following > end:
                break
            if control:
                super().data_received(data[position:following])
                self.on_control()
            elif not self.close_sent:
                self.on_message(apply_mask(data[start + 4 : following], data[start : start + 4]), True)
            position = following
        self._partial = data[position:]

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):
            cast("dict[str, Any]", self.scope)[PROTOCOL] = self

    def send_receive_event_to_app(self) -> None:
        if self.on_message is None:
            super().send_receive_event_to_app()
            return
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if not self.close_sent:
            self.on_message(bytes(data), self.curr_msg_data_type == "text")

    def deliver_to(self, on_message: Callable[[bytes, bool], None], on_control: Callable[[], None]) -> None:
        """From now on messages go to `on_message(data, is_text)`; `on_control()` is called after frames that the library may
        have answered by itself. Call before the handshake is answered."""
        self.on_message, self.on_control = on_message, on_control

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
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    @property
    def too_big(self) -> bool | None:
        """Whether the library ended the connection for a message over the size limit (True) or a protocol error (False); None
        while it has not."""
        failure = self.conn.parser_exc
        return None if failure is None else isinstance(failure, PayloadTooBig)

    def abort(self) -> None:
        """Ends the connection now; the write buffer is lost."""
        self.transport.abort()

    def refused(self) -> None:
        """The handshake was answered with an HTTP error; without this uvicorn logs that it is incomplete."""
        self.handshake_complete = True

    def close(self, code: int, reason: str, timeout: float) -> None:
        """Sends a close frame; aborts the connection when the peer has not answered it after `timeout` seconds."""
        if not self.open:
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.resume()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_timer = self.loop.call_later(timeout, self.transport.abort)
