"""Reads the signature of an operation's function at start, and refuses a declaration that cannot be right."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hw_server.auth import Principal
from hw_server.operations.declaration import RPC, Operation
from hw_server.operations.injection import INJECTED, Context
from hw_server.runtime.parts import Parts

QUERY, BODY = "query", "body"
PATH_FIELD = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Signature:
    """`fields` are the parameters that the caller fills: those in the path, `query` and `body`, with their types;
    `owners` says for each RPC parameter which of them it belongs to."""

    path_fields: tuple[str, ...]
    fields: dict[str, Any]
    owners: dict[str, str]
    returns: Any
    connection: str | None  # read | write
    values: tuple[tuple[str, Callable[[Context], Any]], ...]
    constants: dict[str, Any]

    def assemble(self, arguments: dict[str, Any], context: Context) -> dict[str, Any]:
        """All arguments of a call: those that the caller sent and those that the platform gives."""
        arguments.update(self.constants)
        for name, value in self.values:
            arguments[name] = value(context)
        return arguments


def read_signature(operation: Operation, parts: Parts) -> Signature:
    """Raises ValueError for a declaration that cannot be right."""
    try:
        return _read(operation, parts)
    except ValueError as error:
        raise ValueError(f"operation {operation.name}: {error}") from None


def _read(operation: Operation, parts: Parts) -> Signature:
    hints = get_type_hints(operation.handler, include_extras=True)
    returns = hints.pop("return", None)
    if returns is None:
        raise ValueError("its answer needs a type")
    path_fields = tuple(PATH_FIELD.findall(operation.path))
    fields: dict[str, Any] = {}
    injected: dict[str, str] = {}  # kind -> parameter
    values: list[tuple[str, Callable[[Context], Any]]] = []
    constants: dict[str, Any] = {}
    for parameter in inspect.signature(operation.handler).parameters:
        annotation = hints.get(parameter)
        kind = next((name for name, row in INJECTED.items() if row.matches(annotation)), None)
        if kind is None:
            if parameter not in path_fields and parameter not in (QUERY, BODY):
                raise ValueError(
                    f"parameter {parameter} is neither in the path, nor `query` or `body`, nor anything the platform gives"
                )
            fields[parameter] = annotation
            continue
        row = INJECTED[kind]
        if row.group and any(INJECTED[other].group == row.group for other in injected):
            raise ValueError(f"{parameter} is a second {row.group}")
        injected[kind] = parameter
        if row.constant is not None:
            constants[parameter] = row.constant(annotation, parts)
        if row.value is not None:
            values.append((parameter, row.value))
    _refuse_wrong_input(operation, path_fields, fields)
    owners = _owners(fields)
    _refuse_wrong_injection(operation, injected, hints)
    connection = next((kind for kind in ("read", "write") if kind in injected), None)
    return Signature(path_fields, fields, owners, returns, connection, tuple(values), constants)


def _refuse_wrong_input(operation: Operation, path_fields: tuple[str, ...], fields: dict[str, Any]) -> None:
    missing = [field for field in path_fields if field not in fields]
    if missing:
        raise ValueError(f"the path has {{{missing[0]}}}, the function has not")
    if BODY in fields and operation.method in ("GET", "DELETE"):
        raise ValueError(f"{operation.method} has no body")


def _refuse_wrong_injection(operation: Operation, injected: dict[str, str], hints: dict[str, Any]) -> None:
    if "events" in injected and "read" in injected:
        raise ValueError("Events needs Write, or no connection")
    if operation.changes and not {"events", "write"} & {*injected} and operation.audit == "transaction":
        raise ValueError(
            'it changes something without Write: say audit="direct", or reads=True for a POST that only reads'
        )
    if operation.changes and operation.audit in ("queued", "never"):
        raise ValueError(f'it changes something, and audit="{operation.audit}" writes no row before the answer')
    if operation.audit == "direct" and not operation.changes:
        raise ValueError('audit="direct" is for what changes something')
    for kind, name in (("write", "Write"), ("events", "Events")):
        if kind in injected and not operation.changes:
            raise ValueError(f"it only reads, and takes {name}")
        if kind in injected and operation.audit != "transaction":
            raise ValueError(f'audit="{operation.audit}" contradicts {name}, whose transaction holds the audit row')
    if "after_commit" in injected and "write" not in injected:
        raise ValueError("AfterCommit needs Write")
    if operation.public and "caller" in injected and hints[injected["caller"]] is Principal:
        raise ValueError(f"it is public, so {injected['caller']} may be None: say Principal | None")
    if "socket" in injected and operation.method != RPC:
        raise ValueError("HTTP has no socket to give")


def _owners(fields: dict[str, Any]) -> dict[str, str]:
    """Which field each RPC parameter belongs to; a name in two places is refused."""
    owners: dict[str, str] = {}
    for field, annotation in fields.items():
        for name in fields_of(annotation) if field in (QUERY, BODY) else (field,):
            if name in owners:
                raise ValueError(f"{name} is in {owners[name]} and in {field}")
            owners[name] = field
    return owners


def fields_of(annotation: Any) -> dict[str, FieldInfo]:
    """The fields of a model by the names under which they are sent. Raises ValueError for one that has several."""
    fields = {}
    for name, field in model_of(annotation).model_fields.items():
        if not isinstance(field.validation_alias, str | None):
            raise ValueError(f"{name} has more than one name: make its alias a text")
        fields[field.validation_alias or name] = field
    return fields


def model_of(annotation: Any) -> type[BaseModel]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
        raise ValueError(f"`query` and `body` must be pydantic models, not {annotation!r}")
    return annotation
