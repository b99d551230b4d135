"""Binds the input of an operation, from HTTP or RPC, to its declared models, and those to the function's arguments. JSON has
types of its own, so its values are taken strictly (`"7"` is no number, `0` no date); the texts of a URL are converted."""

import inspect
import re
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import from_json, to_json

from hw_server.auth import Principal
from hw_server.errors import InvalidInput, Malformed
from hw_server.operations.declaration import Access, AfterCommit, Operation

QUERY, BODY = "query", "body"
PATH_FIELD = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Injected:
    """Parameters that the platform fills: their names by what fills them."""

    connection: str | None
    caller: str | None
    after_commit: str | None
    provided: dict[str, Any]


class Input(NamedTuple):
    """What a caller sent: path and query fields, as the texts of a URL or as JSON, and the body, as JSON."""

    address: dict[str, Any] | bytes
    body: bytes | None = None


class Binder:
    def __init__(self, operation: Operation, provided: dict[type, Any]) -> None:
        self.operation = operation
        hints = get_type_hints(operation.handler, include_extras=True)
        self._returns = hints.pop("return", None)
        if self._returns is None:
            raise ValueError(f"operation {operation.name}: its answer needs a type")
        self.path_fields = tuple(PATH_FIELD.findall(operation.path))
        self.writes = False
        self.fields: dict[str, Any] = {}
        self.given = self._classify(inspect.signature(operation.handler), hints, provided)
        self._owner = self._owners()
        address: type[BaseModel] = create_model(  # type: ignore[call-overload]
            operation.name.replace(".", "_"),
            __config__=ConfigDict(extra="forbid"),
            **{name: (kind, ...) for name, kind in self.fields.items() if name != BODY},
        )
        self._address = address.__pydantic_validator__
        self._query_lists = self._list_fields(self.fields.get(QUERY))
        self.dump = TypeAdapter(self._returns).serializer.to_json
        self.takes_body = BODY in self.fields
        self._body = TypeAdapter(self.fields[BODY]).validator if self.takes_body else None

    @property
    def returns(self) -> Any:
        return self._returns

    def _classify(self, signature: inspect.Signature, hints: dict[str, Any], provided: dict[type, Any]) -> Injected:
        name = self.operation.name
        connection = caller = after_commit = None
        filled: dict[str, Any] = {}
        for parameter in signature.parameters:
            kind = hints.get(parameter)
            mark = next((item for item in get_args(kind)[1:] if isinstance(item, str)), None) if kind else None
            if mark in (Access.READ, Access.WRITE):
                connection, self.writes = parameter, mark == Access.WRITE
            elif mark == Access.PROVIDED:
                wanted = get_args(kind)[0]
                if wanted not in provided:
                    raise ValueError(f"operation {name}: nothing provides {wanted.__name__} for {parameter}")
                filled[parameter] = provided[wanted]
            elif kind is Principal or kind == Principal | None:
                caller = parameter
            elif kind is AfterCommit:
                after_commit = parameter
            elif parameter in self.path_fields or parameter in (QUERY, BODY):
                self.fields[parameter] = kind
            else:
                raise ValueError(
                    f"operation {name}: parameter {parameter} is neither in the path, nor `query` or `body`, nor given"
                )
        missing = [field for field in self.path_fields if field not in self.fields]
        if missing:
            raise ValueError(f"operation {name}: the path has {{{missing[0]}}}, the function has not")
        if BODY in self.fields and self.operation.method in ("GET", "DELETE"):
            raise ValueError(f"operation {name}: {self.operation.method} has no body")
        return Injected(connection, caller, after_commit, filled)

    def _owners(self) -> dict[str, str]:
        """Which nested model each RPC parameter belongs to; a name in two places is refused."""
        owner: dict[str, str] = {}
        for part, kind in self.fields.items():
            for field in _model_fields(kind) if part in (QUERY, BODY) else (part,):
                if field in owner:
                    raise ValueError(f"operation {self.operation.name}: {field} is in {owner[field]} and in {part}")
                owner[field] = part
        return owner

    @staticmethod
    def _list_fields(kind: Any) -> frozenset[str]:
        if kind is None:
            return frozenset()
        fields = _model(kind).model_fields
        return frozenset(name for name, field in fields.items() if get_origin(field.annotation) in (list, set, tuple))

    def from_http(self, path: dict[str, Any], query_string: bytes, body: bytes) -> Input:
        """Raises `Malformed` for a query string or a body that cannot be read."""
        address: dict[str, Any] = {name: path[name] for name in self.path_fields}
        if QUERY in self.fields:
            address[QUERY] = self._query(query_string)
        elif query_string:
            address.update(self._query(query_string))
        if not self.takes_body:
            return Input(address)
        check_json(body)
        return Input(address, body)

    def _query(self, query_string: bytes) -> dict[str, Any]:
        if not query_string:
            return {}
        try:
            pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
        except ValueError:
            raise Malformed("the query string is not valid") from None
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in self._query_lists:
                found.setdefault(name, []).append(value)
            else:
                found[name] = value
        return found

    def from_params(self, params: dict[str, Any]) -> Input:
        raw: dict[str, Any] = {part: {} for part in (QUERY, BODY) if part in self.fields}
        for name, value in params.items():
            part = self._owner.get(name, name)
            if part in (QUERY, BODY) and part in raw:
                raw[part][name] = value
            else:
                raw[name] = value
        body = to_json(raw.pop(BODY)) if self.takes_body else None
        return Input(to_json(raw) if raw else {}, body)

    def arguments(self, given: Input) -> dict[str, Any]:
        """The function's own arguments; raises `InvalidInput` that names every bad field."""
        arguments: dict[str, Any] = {}
        problems: list[dict[str, str]] = []
        if self.fields or given.address:
            try:
                arguments.update(self._bound_address(given.address).__dict__)
            except ValidationError as error:
                problems = _field_errors(error, QUERY)
        if self._body is not None:
            try:
                arguments[BODY] = self._body.validate_json(given.body or b"", strict=True)
            except ValidationError as error:
                problems += _field_errors(error, BODY)
        if problems:
            raise InvalidInput(problems)
        return arguments

    def _bound_address(self, address: dict[str, Any] | bytes) -> Any:
        if isinstance(address, bytes):
            return self._address.validate_json(address, strict=True)
        return self._address.validate_python(address)


def check_json(data: bytes) -> None:
    """Raises `Malformed` for what is not JSON. Pydantic's own reader would take NaN."""
    if not data:
        raise Malformed("the body is empty; a JSON object is expected")
    try:
        from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise Malformed(f"not valid JSON: {str(error)[:120]}") from None


def _field_errors(error: ValidationError, part: str) -> list[dict[str, str]]:
    """By field; what is wrong with `part` as a whole is named after it."""
    problems = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        loc = [str(part) for part in item["loc"]]
        if part == QUERY and loc[0] == QUERY:
            loc = loc[1:]
        problems.append({"field": ".".join(loc)[:200] or part, "message": item["msg"], "type": item["type"]})
    return problems[:50]


def _model(kind: Any) -> type[BaseModel]:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if not (inspect.isclass(kind) and issubclass(kind, BaseModel)):
        raise ValueError(f"`query` and `body` must be pydantic models, not {kind!r}")
    return kind


def _model_fields(kind: Any) -> list[str]:
    return list(_model(kind).model_fields)
