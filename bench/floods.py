"""What one client can do to the others: a flood from a process of its own, and the time of a signed-in GET meanwhile.

python -m bench.floods NAME URL TOKEN SECONDS     floods
"""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from tests.raw import CONTINUATION, PING, PONG, TEXT, UPGRADE, RawClient, frame, request_headers

CONNECTIONS = 5
Flood = Callable[[str, str], None]


def call(method: str, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


LISTS = frame(TEXT, b"[" + b",".join([call("notes.list", per_page=100)] * 50) + b"]", mask=bytes(4))
SEARCHES = frame(
    TEXT, b"[" + b",".join([call("notes.list", title="#", sort="-title", page=1)] * 50) + b"]", mask=bytes(4)
)
KEYS = b"{" + b",".join(b'"%d":0' % index for index in range(100_000)) + b"}"


def over_socket(data: bytes, sign_in: bool = True) -> Flood:
    """Sends the same, unread, as long as the server takes it; connects again when it does not."""

    def flood(url: str, token: str) -> None:
        with RawClient(url, timeout=2) as client:
            client.handshake(token if sign_in else None)
            while True:
                client.socket.sendall(data)

    return flood


def over_http(
    headers: dict[str, str], data: bytes, then: bytes = b"", pause: float = 0, path: str = "/api/notes"
) -> Flood:
    def flood(url: str, token: str) -> None:
        with RawClient(url, timeout=2) as client:
            client.socket.sendall(request_headers(f"POST {path} HTTP/1.1", {"Host": "x", **headers}) + data)
            while then:
                client.socket.sendall(then)
                time.sleep(pause)
            client.rest()

    return flood


def leave(url: str, token: str) -> None:
    """Signs in and is gone before the answer."""
    with RawClient(url, timeout=2) as client:
        client.handshake()
        client.send(frame(TEXT, call("session.authenticate", token=token)))


def ask_and_leave(url: str, token: str) -> None:
    """Asks for more than is answered at once, and is gone."""
    with RawClient(url, timeout=2) as client:
        client.handshake(token)
        client.send(SEARCHES * 20)


def upgrade(url: str, token: str) -> None:
    with RawClient(url, timeout=2) as client:
        client.send(request_headers("GET /web HTTP/1.1", UPGRADE | {f"X-{index}": "1" for index in range(200)}))
        client.rest()


def one_after_the_other(headers: dict[str, str], body: bytes) -> Flood:
    """Requests with a good token on one connection, each after the answer to the one before."""

    def flood(url: str, token: str) -> None:
        with RawClient(url, timeout=2) as client:
            fields = {"Host": "x", "Authorization": f"Bearer {token}", "Content-Type": "application/json", **headers}
            while True:
                client.socket.sendall(request_headers("POST /api/notes HTTP/1.1", fields) + body)
                client.response()

    return flood


def signed_in_handshakes(url: str, token: str) -> None:
    with RawClient(url, timeout=2) as client:
        client.handshake(token)


def parameters(url: str, token: str) -> None:
    with RawClient(url, timeout=2) as client:
        client.send(request_headers(f"GET /health/live?{'a&' * 30_000} HTTP/1.1", {"Host": "x"}))
        client.rest()


def pipeline(url: str, token: str) -> None:
    with RawClient(url, timeout=2) as client:
        while True:
            client.socket.sendall(request_headers("GET /health/live HTTP/1.1", {"Host": "x"}) * 5_000)


FLOODS: dict[str, Flood] = {
    "empty pings": over_socket(frame(PING, mask=bytes(4)) * 40_000, sign_in=False),
    "empty pongs": over_socket(frame(PONG, mask=bytes(4)) * 40_000, sign_in=False),
    "empty fragments": over_socket(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 40_000, sign_in=False),
    "messages that are no JSON": over_socket(frame(TEXT, b"{", mask=bytes(4)) * 40_000),
    "batches of lists, unread": over_socket(LISTS),
    "rpc.discover, unread": over_socket(frame(TEXT, call("rpc.discover"), mask=bytes(4)) * 1_000),
    "slow searches": over_socket(SEARCHES),
    "slow searches, and gone": ask_and_leave,
    "sign in and leave": leave,
    "handshakes with a good token": signed_in_handshakes,
    "upgrades with 200 fields": upgrade,
    "trailers without end": over_http({"Transfer-Encoding": "chunked"}, b"0\r\nX: ", b"x" * 65_536),
    "pipelines, unread": pipeline,
    "bodies byte by byte": over_http({"Content-Length": "1000000"}, b"", b"x", 0.01),
    "logouts byte by byte": over_http(
        {"Content-Length": "60000", "Content-Type": "application/x-www-form-urlencoded"},
        b"",
        b"x",
        0.01,
        path="/api/auth/backchannel-logout",
    ),
    "chunks of one byte": one_after_the_other(
        {"Transfer-Encoding": "chunked"}, b"1\r\n \r\n" * 150_000 + b"2\r\n{}\r\n0\r\n\r\n"
    ),
    "unknown keys": one_after_the_other({"Content-Length": str(len(KEYS))}, KEYS),
    "30,000 query parameters": parameters,
}


def main(name: str, url: str, token: str, seconds: float) -> None:
    """Five connections at a time, until the time is over."""
    ends = time.monotonic() + seconds

    def repeat() -> None:
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                FLOODS[name](url, token)

    for _ in range(CONNECTIONS):
        threading.Thread(target=repeat, daemon=True).start()
    time.sleep(seconds)


def times(url: str, token: str, seconds: float) -> list[float]:
    """Of one GET after the other, sorted."""
    parts = urlsplit(url)
    request = request_headers(
        "GET /api/notes?per_page=20 HTTP/1.1", {"Host": parts.netloc, "Authorization": f"Bearer {token}"}
    )
    taken = []
    ends = time.perf_counter() + seconds
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=30) as connection:
        while time.perf_counter() < ends:
            started = time.perf_counter()
            connection.sendall(request)
            data = connection.recv(65536)
            size = int(re.search(rb"content-length: (\d+)", data)[1])  # type: ignore[index]
            if b" 200 " not in data[:20]:
                raise RuntimeError(data[:200])
            while len(data.partition(b"\r\n\r\n")[2]) < size:
                data += connection.recv(65536)
            taken.append(time.perf_counter() - started)
    return sorted(taken)


def p99_during(name: str, url: str, token: str, flooder: str, seconds: float) -> float:
    command = [sys.executable, "-m", "bench.floods", name, url, flooder, f"{seconds + 2:g}"]
    with subprocess.Popen(command) as flood:
        try:
            time.sleep(1)
            taken = times(url, token, seconds)
        finally:
            flood.terminate()
    return taken[int(len(taken) * 0.99)]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
