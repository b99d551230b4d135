"""The network outside: a TCP proxy in front of a real server, that can go silent as a firewall does."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """`swallow()` makes all present connections silent; new ones work. A chunk from a client that contains `hold_at` waits until
    `release` is set; `held` says that one waits. After a chunk that contains `mute_at` no answer comes back on its connection;
    `muted` says that it was forwarded. An answer that contains `lose_at` is lost, as is all that follows on its connection; `lost`
    says so. The answer to the first chunk that contains `late_at` comes once `release` is set; `held`
    says that it is there. `refuse()` is a server that is gone: nothing passes, and nobody connects any more."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._silent: list[threading.Event] = []
        self._sockets: list[socket.socket] = []
        self._pumps: list[threading.Thread] = []
        self.hold_at = self.mute_at = self.lose_at = self.late_at = b""
        self._late: threading.Event | None = None  # its connection's
        self.held, self.release = threading.Event(), threading.Event()
        self.muted, self.lost = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    @classmethod
    @contextlib.contextmanager
    def running(cls, port: int) -> "Iterator[Proxy]":
        proxy = cls(port)
        accepting = threading.Thread(target=proxy._accept, daemon=True)
        accepting.start()
        yield proxy
        proxy.release.set()
        for open_ in (proxy._listener, *proxy._sockets):
            with contextlib.suppress(OSError):
                open_.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for pump in proxy._pumps:
            pump.join()
        for open_ in (proxy._listener, *proxy._sockets):
            open_.close()

    def swallow(self) -> None:
        for silent in self._silent:
            silent.set()

    def refuse(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.swallow()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                silent = threading.Event()
                self._silent.append(silent)
                self._sockets += (client, server)
                for arguments in ((client, server, silent, True), (server, client, silent, False)):
                    self._pumps.append(threading.Thread(target=self._pump, args=arguments, daemon=True))
                    self._pumps[-1].start()

    def _pump(self, source: socket.socket, target: socket.socket, silent: threading.Event, asking: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if silent.is_set():
                    continue
                if asking and self.hold_at and self.hold_at in data:
                    self.held.set()
                    self.release.wait(30)
                if asking and self.late_at and self.late_at in data:
                    self.late_at, self._late = b"", silent
                elif not asking and self._late is silent:
                    self._late = None
                    self.held.set()
                    self.release.wait(30)
                if not asking and self.lose_at and self.lose_at in data:
                    silent.set()
                    self.lost.set()
                    continue
                mute = asking and self.mute_at and self.mute_at in data
                if mute:
                    silent.set()
                target.sendall(data)
                if mute:
                    self.muted.set()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
