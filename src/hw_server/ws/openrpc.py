"""The OpenRPC document, from the same declarations as the OpenAPI document."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from hw_server import __version__
from hw_server.operations import PUBLIC, BoundOperation, Feature, JsonObject
from hw_server.operations.signature import BODY, QUERY
from hw_server.ws.codes import RPC_ERRORS, CloseCode

NOTIFICATIONS = [
    "session.expiring", "server.draining", "topic.event", "topic.events", "topic.reset", "topic.unsubscribed",
]  # fmt: skip
REF = "#/components/schemas/{model}"


class OpenRpc:
    """`document` is there after `describe`."""

    def __init__(self, public_url: str) -> None:
        self._address = public_url.replace("http", "ws", 1) + "/web"
        self.document = JsonObject()

    def describe(self, operations: Iterable[BoundOperation], features: Iterable[Feature]) -> None:
        schemas: dict[str, Any] = {}
        kinds = [*RPC_ERRORS, *(kind for feature in features for kind in feature.errors)]
        document = {
            "openrpc": "1.3.2",
            "info": {"title": "hw-server", "version": __version__},
            "servers": [{"name": "web", "url": self._address}],
            "methods": [_method(bound, schemas) for bound in operations],
            "components": {
                "schemas": schemas,
                "errors": {kind.code: {"code": kind.rpc_code, "message": kind.title} for kind in kinds},
            },
            "x-close-codes": {code.name.lower(): int(code) for code in CloseCode},
            "x-notifications": NOTIFICATIONS,
        }
        self.document = JsonObject(to_json(document))


def _method(bound: BoundOperation, schemas: dict[str, Any]) -> dict[str, Any]:
    operation, signature = bound.operation, bound.signature
    params: list[dict[str, Any]] = []
    for field, annotation in signature.fields.items():
        schema = _schema(annotation, schemas)
        if field in (QUERY, BODY):
            model = schemas[schema["$ref"].rsplit("/", 1)[1]]
            required = model.get("required", [])
            params += [
                {"name": name, "required": name in required, "schema": property_schema}
                for name, property_schema in model["properties"].items()
            ]
        else:
            params.append({"name": field, "required": True, "schema": schema})
    return {
        "name": operation.name,
        "summary": operation.summary,
        "tags": [{"name": operation.tag}],
        "paramStructure": "by-name",
        "params": params,
        "result": {"name": "result", "schema": _schema(signature.returns, schemas)},
        "x-role": operation.role or PUBLIC,
    }


def _schema(annotation: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    mode = "validation" if isinstance(annotation, type) and issubclass(annotation, BaseModel) else "serialization"
    schema = TypeAdapter(annotation).json_schema(ref_template=REF, mode=mode)  # type: ignore[arg-type]
    schemas.update(schema.pop("$defs", {}))
    if "properties" in schema and "title" in schema:
        name = schema["title"].replace("[", "_").replace("]", "")
        schemas[name] = schema
        return {"$ref": REF.format(model=name)}
    return schema
