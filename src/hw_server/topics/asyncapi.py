"""The AsyncAPI document: topics, from the same declarations that serve them."""

from typing import Any

from pydantic import TypeAdapter

from hw_server import __version__
from hw_server.operations import Topic
from hw_server.topics.registry import Registry

DURABLE = "Events are durable once the change that they tell of is committed, or once a publication is answered."
EPHEMERAL = "Events go straight to Redis and are not durable: one may be lost."
REF = "#/components/schemas/{model}"


def describe(registry: Registry, public_url: str) -> dict[str, Any]:
    """AsyncAPI 3.0."""
    # Generated together, so that two models of one name get distinct schemas.
    schemas, definitions = TypeAdapter.json_schemas(
        [(topic.pattern, "serialization", topic.adapter) for topic in registry.topics], ref_template=REF
    )
    channels, operations = {}, {}
    for topic in registry.topics:
        key = topic.pattern.replace("/", ".").replace("{", "").replace("}", "")
        channels[key] = _channel(topic, schemas[topic.pattern, "serialization"])
        operations[f"{key}.receive"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{key}"},
            "summary": "Events that subscribers get.",
        }
        if topic.publish is not None:
            operations[f"{key}.publish"] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{key}"},
                "summary": "Events that clients publish with `topic.publish`.",
            }
    scheme, _, rest = public_url.partition("://")
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "hw-server", "version": __version__},
        "servers": {
            "web": {
                "host": rest.partition("/")[0],
                "pathname": "/web",
                "protocol": "wss" if scheme == "https" else "ws",
                "description": "JSON-RPC 2.0: topic.subscribe, topic.event and so on.",
            }
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": definitions.get("$defs", {})},
    }


def _channel(topic: Topic[Any], schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "address": topic.pattern,
        "description": EPHEMERAL if topic.ephemeral else DURABLE,
        "messages": {"event": {"name": topic.pattern, "payload": schema}},
        "parameters": {name: {} for name in topic.params},
        "x-subscribe": topic.subscribe if isinstance(topic.subscribe, str) else "by rule",
        "x-delivery": "ephemeral" if topic.ephemeral else "durable",
        "x-when-full": {"action": topic.when_full, "key": topic.key} if topic.key else {"action": topic.when_full},
        "x-history": {
            "length": topic.history.length,
            "hours": topic.history.hours,
            "bytes": topic.history.bytes,
        },
    }
