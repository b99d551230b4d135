"""What a subscription or an event stream gives."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a topic: the event with this offset, of the numbering named by `epoch`."""

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a topic; `data` is its JSON."""

    topic: str
    epoch: str
    offset: int
    data: Any

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)


@dataclass(frozen=True, slots=True)
class Reset:
    """Events were lost: the server no longer has what lies between the last event and this position. What was derived
    from earlier events must be read anew."""

    topic: str
    epoch: str
    offset: int

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)
