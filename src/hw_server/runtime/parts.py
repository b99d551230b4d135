"""The application's parts by type."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Factory = Callable[["Parts"], Any]


class Parts:
    """`parts[Kind]` is the one part of that type, constructed when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[type, Any] = {}
        self._factories: dict[type, Factory] = {}
        self._being_made: list[type] = []

    def add(self, kind: type[T], part: T) -> T:
        """Adds a part that exists; returns it."""
        self._refuse_second(kind)
        self._made[kind] = part
        return part

    def provide(self, kind: type, factory: Factory) -> None:
        """Adds a part that `factory` constructs, of other parts."""
        self._refuse_second(kind)
        self._factories[kind] = factory

    def __getitem__(self, kind: type[T]) -> T:
        """Raises ValueError where nothing provides it, or where two parts need each other."""
        if kind not in self._made:
            if kind not in self._factories:
                raise ValueError(f"nothing provides {kind.__name__}")
            if kind in self._being_made:
                circle = " -> ".join(item.__name__ for item in (*self._being_made, kind))
                raise ValueError(f"parts need each other: {circle}")
            self._being_made.append(kind)
            try:
                self._made[kind] = self._factories[kind](self)
            finally:
                self._being_made.pop()
        part: T = self._made[kind]
        return part

    def __contains__(self, kind: type) -> bool:
        return kind in self._made or kind in self._factories

    def _refuse_second(self, kind: type) -> None:
        if kind in self:
            raise ValueError(f"{kind.__name__} is provided twice")
