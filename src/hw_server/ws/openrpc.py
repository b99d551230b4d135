"""The OpenRPC description, from the same declarations as the OpenAPI document."""

from typing import Any

from pydantic import BaseModel, TypeAdapter

from hw_server import __version__
from hw_server.operations import Executor
from hw_server.operations.binder import BODY, QUERY
from hw_server.operations.execution import BoundOperation
from hw_server.ws.codes import RPC_CODE, CloseCode

REF = "#/components/schemas/{model}"
TOKEN = {"name": "token", "required": True, "schema": {"type": "string"}}


def describe(executor: Executor, url: str) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    methods = [_method(bound, schemas) for bound in executor.operations.values()]
    methods += [
        _platform("session.authenticate", "Sign the socket in.", [TOKEN]),
        _platform("session.refresh", "Give the socket a newer token of the same user.", [TOKEN]),
        _platform("rpc.discover", "Get this document.", []),
        _platform("ping", "Ask whether the socket works.", []),
    ]
    return {
        "openrpc": "1.3.2",
        "info": {"title": "hw-server", "version": __version__},
        "servers": [{"name": "web", "url": url.replace("http", "ws", 1) + "/web"}],
        "methods": methods,
        "components": {
            "schemas": schemas,
            "errors": {name: {"code": code, "message": name} for name, code in RPC_CODE.items()},
        },
        "x-close-codes": {code.name.lower(): int(code) for code in CloseCode},
        "x-notifications": ["session.expiring", "server.draining"],
    }


def _method(bound: BoundOperation, schemas: dict[str, Any]) -> dict[str, Any]:
    operation, binder = bound.operation, bound.binder
    params: list[dict[str, Any]] = []
    for part, kind in binder.fields.items():
        schema = _schema(kind, schemas)
        if part in (QUERY, BODY):
            model = schemas[schema["$ref"].rsplit("/", 1)[1]]
            required = model.get("required", [])
            params += [
                {"name": name, "required": name in required, "schema": field}
                for name, field in model["properties"].items()
            ]
        else:
            params.append({"name": part, "required": True, "schema": schema})
    return {
        "name": operation.name,
        "summary": operation.summary,
        "tags": [{"name": operation.tag}],
        "paramStructure": "by-name",
        "params": params,
        "result": {"name": "result", "schema": _schema(binder.returns, schemas)},
        "x-role": operation.role,
    }


def _platform(name: str, summary: str, params: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "summary": summary,
        "tags": [{"name": "platform"}],
        "paramStructure": "by-name",
        "params": params,
        "result": {"name": "result", "schema": {}},
    }


def _schema(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    mode = "validation" if isinstance(kind, type) and issubclass(kind, BaseModel) else "serialization"
    schema = TypeAdapter(kind).json_schema(ref_template=REF, mode=mode)  # type: ignore[arg-type]
    schemas.update(schema.pop("$defs", {}))
    if "properties" in schema and "title" in schema:
        name = schema["title"].replace("[", "_").replace("]", "")
        schemas[name] = schema
        return {"$ref": REF.format(model=name)}
    return schema
