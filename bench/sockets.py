"""A load generator for sockets that costs little: frames are encoded before the run, answers are only counted.

python -m bench.sockets URL TOKEN SOCKETS DEPTH SECONDS     prints calls a second
python -m bench.sockets URL TOKEN SOCKETS 0 SECONDS         holds idle sockets, prints `open` when all are
"""

import asyncio
import base64
import os
import struct
import sys
from urllib.parse import urlsplit

import uvloop

CALL = b'{"jsonrpc":"2.0","id":1,"method":"notes.list","params":{"per_page":20}}'


def masked(payload: bytes) -> bytes:
    """A text frame of a client; a mask of zeros leaves the payload as it is."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + struct.pack("!H", size)
    return head + b"\0\0\0\0" + payload


class Client(asyncio.Protocol):
    answered = 0

    def __init__(self, handshake: bytes, depth: int, opened: asyncio.Future[None]) -> None:
        self._handshake, self._depth, self._opened = handshake, depth, opened
        self._buffer = b""
        self._frame = masked(CALL)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(self._handshake)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        if not self._opened.done():
            head, separator, data = data.partition(b"\r\n\r\n")
            if not separator:
                self._buffer = head
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                self._opened.set_exception(RuntimeError(head.split(b"\r\n", 1)[0].decode()))
                return
            self._opened.set_result(None)
        self._buffer = self._count(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(RuntimeError("the connection ended before the handshake"))

    def begin(self) -> None:
        self._transport.write(self._frame * self._depth)

    def _count(self, data: bytes) -> bytes:
        """Counts whole frames and asks again for each; gives back what is left over."""
        position = 0
        while position + 2 <= len(data):
            size, head = data[position + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[position + 2 : position + 4], "big"), 4
            elif size == 127:
                size, head = int.from_bytes(data[position + 2 : position + 10], "big"), 10
            if position + head + size > len(data):
                break
            if data[position] == 0x81:
                if b'"error"' in data[position + head : position + head + 60]:
                    raise RuntimeError(data[position : position + 300].decode(errors="replace"))
                Client.answered += 1
                self._transport.write(self._frame)
            position += head + size
        return data[position:]


async def connect(url: str, token: str, sockets: int, depth: int, kind: "type[Client] | None" = None) -> "list[Client]":
    """So many open sockets."""
    parts = urlsplit(url)
    clients = []
    for _ in range(sockets):
        lines = [
            f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}", "Sec-WebSocket-Version: 13",
        ]  # fmt: skip
        if token:
            lines.append(f"Authorization: Bearer {token}")
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        handshake = ("\r\n".join(lines) + "\r\n\r\n").encode()
        _, client = await asyncio.get_running_loop().create_connection(
            lambda handshake=handshake, opened=opened: (kind or Client)(handshake, depth, opened),
            parts.hostname,
            parts.port,
        )  # type: ignore[misc]
        await asyncio.wait_for(opened, 20)
        clients.append(client)
    return clients


async def main(url: str, token: str, sockets: int, depth: int, seconds: float) -> None:
    clients = await connect(url, token, sockets, depth)
    if depth:
        for client in clients:
            client.begin()
        await asyncio.sleep(seconds)
        print(Client.answered / seconds, Client.answered, flush=True)
    else:
        print("open", flush=True)
        await asyncio.sleep(seconds)


if __name__ == "__main__":
    url, token, sockets, depth, seconds = sys.argv[1:]
    uvloop.run(main(url, token, int(sockets), int(depth), float(seconds)))
