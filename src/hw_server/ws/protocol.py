"""uvicorn's sans-IO WebSocket protocol with a short way in and out: a message goes straight to the socket's owner, and a
frame straight to the transport. The handshake, control frames, close and keep-alive stay uvicorn's."""

import struct
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

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

    def deliver_to(self, on_message: Callable[[bytes, bool], None]) -> None:
        """From now on messages go to `on_message(data, is_text)`; call before the handshake is answered."""
        self.on_message = on_message

    @property
    def open(self) -> bool:
        return not (self.close_sent or self.disconnected or self.transport.is_closing())

    @property
    def unsent(self) -> int:
        """Bytes that the client has not taken yet."""
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

    def refused(self) -> None:
        """The handshake was answered with an HTTP error; without this uvicorn logs an incomplete one."""
        self.handshake_complete = True

    def close(self, code: int, reason: str, patience: float) -> None:
        """Sends a close frame; the connection is cut when the peer has not answered after `patience` seconds."""
        if not self.open:
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.resume()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_timer = self.loop.call_later(patience, self.transport.abort)
