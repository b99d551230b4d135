"""Declaring topics.

AUTHORS = Topic("authors", AuthorEvent, subscribe="authors:read")
ROOM = Topic("rooms/{id}", RoomEvent, params={"id": int}, subscribe=may_enter, publish=may_speak)
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

E = TypeVar("E")
Rule = str | Callable[..., Awaitable[bool]]
PARAM = re.compile(r"{(\w+)}")
MAX_NAME = 255  # characters


@dataclass(frozen=True, slots=True)
class History:
    """What a topic keeps for subscribers that were away: at most so many events, so old, so many bytes together."""

    length: int = 1000
    hours: float = 24.0
    bytes: int = 1_048_576


class Topic(Generic[E]):
    """A family of topics. `pattern` is its name, with typed parameters in braces; `event` the type of its events.

    subscribe, publish: who may: a role, or `async (caller, **params) -> bool`. Without `publish` only operations publish.
    history: what is kept for recovery.
    ordered: publishing transactions of one topic take turns, so that events of different rows keep the order of commits.
    """

    def __init__(
        self,
        pattern: str,
        event: type[E],
        *,
        subscribe: Rule,
        publish: Rule | None = None,
        params: Mapping[str, Any] | None = None,
        history: History = History(),
        ordered: bool = False,
    ) -> None:
        names = PARAM.findall(pattern)
        if unknown := (params or {}).keys() - set(names):
            raise ValueError(f"topic {pattern}: it has no parameter {unknown.pop()}")
        self.pattern = pattern
        self.event = event
        self.subscribe = subscribe
        self.publish = publish
        self.history = history
        self.ordered = ordered
        self.params: dict[str, TypeAdapter[Any]] = {name: TypeAdapter((params or {}).get(name, str)) for name in names}
        literal = [re.escape(part) for part in PARAM.split(pattern)[::2]]
        groups = [f"(?P<{name}>[^/]+)" for name in names]
        self._match = re.compile("".join(a + b for a, b in zip(literal, [*groups, ""], strict=True)))
        self._adapter: TypeAdapter[E] = TypeAdapter(event)

    def name(self, **params: Any) -> str:
        """The name of one topic of the family; raises ValueError for parameters that do not fit."""
        if params.keys() != self.params.keys():
            raise ValueError(f"topic {self.pattern}: its parameters are {', '.join(self.params) or 'none'}")
        name = self.pattern.format(**params)
        if self.match(name) is None:
            raise ValueError(f"{name!r} is no name of topic {self.pattern}")
        return name

    def match(self, name: str) -> dict[str, Any] | None:
        """The parameters of a name, None where it is of another family. Names are canonical: `rooms/07` is not `rooms/7`."""
        found = self._match.fullmatch(name) if len(name) <= MAX_NAME and name.isprintable() else None
        if found is None:
            return None
        try:
            params = {key: self.params[key].validate_strings(value) for key, value in found.groupdict().items()}
        except ValidationError:
            return None
        return params if self.pattern.format(**params) == name else None

    def dump(self, event: E) -> bytes:
        """An event as JSON."""
        return self._adapter.dump_json(event)

    def load(self, data: bytes) -> E:
        """Validates JSON that a client sent; raises pydantic's ValidationError."""
        return self._adapter.validate_json(data, strict=True)

    def schema(self, ref: str) -> dict[str, Any]:
        return self._adapter.json_schema(ref_template=ref, mode="serialization")
