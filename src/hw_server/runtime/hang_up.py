"""Notices that a client has gone while its connection is not read."""

import asyncio
import select

INTERVAL = 1.0  # seconds


class HangUpWatch:
    """EOF is not seen while reading is paused. From `pause` to `resume` this polls one connection for POLLRDHUP each second, and
    aborts it after a hang-up or reset."""

    __slots__ = ("_paused", "_timer", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def pause(self) -> None:
        self._paused = True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def resume(self) -> None:
        self._paused = False  # the timer keeps running: the connection is likely to be paused again soon

    def stop(self) -> None:
        self._paused = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._paused or self._transport.is_closing():
            return
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):  # also where the connection was reset
            self._transport.abort()
        else:
            self.pause()
