"""Clients that send bytes: what no library would."""

import contextlib
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import urlsplit

UPGRADE = {
    "Host": "x", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}  # fmt: skip
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def request_headers(line: str, headers: dict[str, str]) -> bytes:
    return "".join([line, "\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]).encode()


def frame(
    kind: int, payload: bytes = b"", *, fin: bool = True, bits: int = 0, mask: bytes | None = b"\1\2\3\4"
) -> bytes:
    """A client's frame; `bits` are the reserved ones, 0x40, 0x20 and 0x10."""
    first, size, masked = (0x80 if fin else 0) | bits | kind, len(payload), 0x80 if mask else 0
    if size < 126:
        start = bytes((first, masked | size))
    elif size < 65536:
        start = bytes((first, masked | 126)) + struct.pack("!H", size)
    else:
        start = bytes((first, masked | 127)) + struct.pack("!Q", size)
    if mask is None:
        return start + payload
    return start + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


class RawClient:
    """One TCP connection."""

    def __init__(self, url: str, timeout: float = 20, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect((parts.hostname or "", parts.port or 80))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """What the server does not take any more is not sent."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def takes(self, data: bytes, times: int) -> bool:
        """Whether the server takes all of it."""
        try:
            for _ in range(times):
                self.socket.sendall(data)
        except ConnectionError:
            return False
        return True

    def takes_slowly(self, data: bytes, times: int) -> bool:
        """Whether the connection is still open after so many, with a timeout between them."""
        for _ in range(times):
            self.send(data)
            with contextlib.suppress(TimeoutError):
                if not self.more():
                    return False
        return True

    def more(self) -> bool:
        """Reads on; False once the server has closed the connection."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            return False
        self._buffer += data
        return bool(data)

    def rest(self) -> bytes:
        """Everything until the server closes."""
        while self.more():
            continue
        return self._buffer

    def read_until(self, text: bytes) -> bytes:
        """Everything up to and with some text."""
        while text not in self._buffer:
            if not self.more():
                raise ConnectionError
        before, _, self._buffer = self._buffer.partition(text)
        return before + text

    def take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not self.more():
                raise ConnectionError
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def response(self, head_only: bool = False) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next response with a length."""
        while b"\r\n\r\n" not in self._buffer:
            if not self.more():
                raise ConnectionError
        start, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        length = [line for line in start.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = self.take(int(length[0].partition(b":")[2])) if length and not head_only else b""
        return int(start.split(b" ", 2)[1]), start, body

    def statuses(self, head_only: bool = False) -> list[int]:
        """Of all responses until the server closes."""
        statuses = []
        with contextlib.suppress(ConnectionError):
            while True:
                statuses.append(self.response(head_only)[0])
        return statuses

    # The socket

    def handshake(self, token: str | None = None) -> int:
        headers = UPGRADE | ({"Authorization": f"Bearer {token}"} if token else {})
        self.send(request_headers("GET /web HTTP/1.1", headers))
        return self.response()[0]

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of each frame until the server closes."""
        with contextlib.suppress(ConnectionError):
            while True:
                first, size = self.take(2)
                if size == 126:
                    size = int.from_bytes(self.take(2), "big")
                elif size == 127:
                    size = int.from_bytes(self.take(8), "big")
                yield first & 0x0F, self.take(size)

    def close_code(self) -> int:
        """Of the close frame that ends the connection; 0 where it ends without."""
        code = 0
        for kind, payload in self.frames():
            if kind == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
        return code
