"""Declaring topics.

AUTHORS = Topic("authors", AuthorEvent, subscribe="authors:read")
ROOM = Topic("rooms/{id}", RoomEvent, params={"id": int}, subscribe=may_enter, publish=may_speak)
CURSORS = Topic("cursors/{id}", Cursor, params={"id": int}, subscribe=may_enter, publish=may_enter, ephemeral=True,
                when_full="conflate", key="user")
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

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

    subscribe, publish: who may: a role, `SIGNED_IN`, or `async (caller, **params) -> bool`. Without `publish` only operations publish.
    history: what is kept for recovery.
    ordered: publishing transactions of one topic take turns, so that events of different rows keep the order of commits.
    ephemeral: an event goes straight to Redis, once its transaction has committed. It is lost where Redis does not take it.
    when_full: what happens to a subscriber that does not read: `close` ends it, and it comes back for what it missed;
    `conflate` keeps the newest event of each key until it reads again. Offsets that it gets then have gaps.
    key: the field of the event that is the key; without it all events of a topic have one key.
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
        ephemeral: bool = False,
        when_full: Literal["close", "conflate"] = "close",
        key: str | None = None,
    ) -> None:
        names = PARAM.findall(pattern)
        if ephemeral and ordered:
            raise ValueError(f"topic {pattern}: an ephemeral topic has no order of commits")
        if key is not None and when_full != "conflate":
            raise ValueError(f'topic {pattern}: only when_full="conflate" needs a key')
        if unknown := (params or {}).keys() - set(names):
            raise ValueError(f"topic {pattern}: it has no parameter {unknown.pop()}")
        self.pattern = pattern
        self.event = event
        self.subscribe = subscribe
        self.publish = publish
        self.history = history
        self.ordered = ordered
        self.ephemeral = ephemeral
        self.when_full = when_full
        self.key = key
        self.params: dict[str, TypeAdapter[Any]] = {name: TypeAdapter((params or {}).get(name, str)) for name in names}
        literal = [re.escape(part) for part in PARAM.split(pattern)[::2]]
        groups = [f"(?P<{name}>[^/]+)" for name in names]
        self._match = re.compile("".join(a + b for a, b in zip(literal, [*groups, ""], strict=True)))
        self.adapter: TypeAdapter[E] = TypeAdapter(event)
        if key is not None and key not in self.adapter.json_schema(mode="serialization").get("properties", ()):
            raise ValueError(f"topic {pattern}: its event has no field {key}")

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
        match = self._match.fullmatch(name) if len(name) <= MAX_NAME and name.isprintable() else None
        if match is None:
            return None
        try:
            params = {key: self.params[key].validate_strings(value) for key, value in match.groupdict().items()}
        except ValidationError:
            return None
        return params if self.pattern.format(**params) == name else None

    def dump(self, event: E) -> bytes:
        """An event as JSON."""
        return self.adapter.dump_json(event)

    def load(self, data: bytes) -> E:
        """Validates JSON that a client sent; raises pydantic's ValidationError."""
        return self.adapter.validate_json(data, strict=True)

    def key_of(self, data: bytes) -> bytes:
        """The key of an event that was published, by an earlier version perhaps; what is no JSON has none."""
        try:
            event = from_json(data) if self.key is not None else None
        except ValueError:
            return b""
        return to_json(event.get(self.key)) if isinstance(event, dict) else b""
