"""Events that wait for a subscriber that does not read, of topics with `when_full="conflate"`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hw_server.ws.connection import WebSocketConnection

if TYPE_CHECKING:
    from hw_server.topics.broker import Channel

OVERHEAD = 100  # bytes that an event has beside its data, at least

Keyed = list[tuple[bytes, tuple[int, bytes]]]  # (key, (offset, JSON)), in order


class ConflatingBuffer:
    """Keeps the newest event of each key. Offsets increase, so any delivered offset is a valid position to recover from. `size` is
    in bytes."""

    __slots__ = ("_by_channel", "size")

    def __init__(self) -> None:
        self._by_channel: dict[Channel, dict[bytes, tuple[int, bytes]]] = {}
        self.size = 0

    def __contains__(self, channel: "Channel") -> bool:
        return channel in self._by_channel

    def add(self, channel: "Channel", keyed: Keyed) -> int:
        """Returns how many events were replaced."""
        replaced, events = 0, self._by_channel.setdefault(channel, {})
        for key, event in keyed:
            older = events.pop(key, None)  # the newer one goes to the end
            if older is not None:
                replaced += 1
                self.size -= len(older[1]) + OVERHEAD
            events[key] = event
            self.size += len(event[1]) + OVERHEAD
        return replaced

    def discard(self, channel: "Channel") -> None:
        for _, data in self._by_channel.pop(channel, {}).values():
            self.size -= len(data) + OVERHEAD

    def take(self) -> Iterable[tuple["Channel", list[tuple[int, bytes]]]]:
        """All of it; then it is empty."""
        taken, self._by_channel, self.size = self._by_channel, {}, 0
        return [(channel, list(events.values())) for channel, events in taken.items()]

    def flush(self, connection: WebSocketConnection) -> None:
        """Sends all of it, once the socket's client reads again."""
        for channel, events in self.take():
            for frame in channel.frames(events):
                connection.send_frame(frame)
