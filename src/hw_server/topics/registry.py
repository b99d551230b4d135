"""Which topics there are, and who may do what with them."""

from collections.abc import Iterable
from typing import Any, Literal

from hw_server.auth import Principal
from hw_server.errors import Forbidden, NotFound
from hw_server.operations import SIGNED_IN, Feature, Topic


class Registry:
    """The topics of all features. Raises ValueError where two patterns are the same."""

    def __init__(self, features: Iterable[Feature]) -> None:
        self.topics: list[Topic[Any]] = []
        for feature in features:
            for topic in feature.topics:
                if any(other.pattern == topic.pattern for other in self.topics):
                    raise ValueError(f"topic {topic.pattern} is declared twice")
                self.topics.append(topic)

    def find(self, name: str) -> tuple[Topic[Any], dict[str, Any]]:
        """The topic of a name, with its parameters; raises `NotFound`."""
        for topic in self.topics:
            params = topic.match(name)
            if params is not None:
                return topic, params
        raise NotFound(f"there is no topic {name[:100]}")

    async def authorize(self, action: Literal["subscribe", "publish"], name: str, caller: Principal) -> Topic[Any]:
        """Raises `NotFound`, or `Forbidden` for a caller who may not."""
        topic, params = self.find(name)
        rule = topic.subscribe if action == "subscribe" else topic.publish
        if rule is None:
            raise Forbidden("clients do not publish to this topic")
        allowed = (rule in (SIGNED_IN, *caller.roles)) if isinstance(rule, str) else await rule(caller, **params)
        if not allowed:
            words = f"the role {rule} is required" if isinstance(rule, str) else f"the caller may not {action}"
            raise Forbidden(words)
        return topic
