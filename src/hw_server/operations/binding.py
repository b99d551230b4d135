"""Binds what a caller sent, over HTTP or RPC, to the arguments of an operation's function. JSON has types of its own, so its
values are taken strictly (`"7"` is no number, `0` no date); the texts of a URL are converted."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NotRequired, get_origin
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from hw_server.errors import InvalidInput, Malformed
from hw_server.operations.declaration import Operation
from hw_server.operations.signature import BODY, QUERY, Signature, fields_of, model_of

MAX_QUERY_FIELDS = 100
MAX_PROBLEMS = 50  # named in one answer
MANY_PROBLEMS = 500  # past it none is listed: pydantic creates an object for each
NOT_FINITE = {"message": "Numbers must be finite", "type": "finite_number"}
_OWN_WAYS = ("custom_init", "post_init", "root_model")  # of a model's core schema
_HARMLESS = {"extra", "title", "json_schema_extra"}  # settings of a model
CallId = Annotated[int, Field(gt=-(2**63), lt=2**63)] | Annotated[str, Field(max_length=200)]


class Binder:
    """Binds the input of one operation."""

    def __init__(self, operation: Operation, signature: Signature) -> None:
        self._fields = signature.fields
        self._path_fields = signature.path_fields
        self._owners = signature.owners
        url_params: type[BaseModel] = create_model(  # type: ignore[call-overload]
            operation.name.replace(".", "_"),
            __config__=ConfigDict(extra="forbid"),
            **{name: (annotation, ...) for name, annotation in self._fields.items() if name != BODY},
        )
        self._url_params = url_params.__pydantic_validator__
        self._body = TypeAdapter(self._fields[BODY]).validator if BODY in self._fields else None
        self._split, self._request = self._request_validator(operation, url_params)
        # Only input with float fields pays for the search for infinity and NaN.
        self._floats = any(_may_be_float(TypeAdapter(kind).json_schema()) for kind in self._fields.values())
        self._query_lists = _list_fields(self._fields[QUERY]) if QUERY in self._fields else frozenset()

    def from_http(self, path_params: dict[str, Any], query_string: bytes, body: bytes) -> dict[str, Any]:
        """Raises `Malformed` for a query string or a body that cannot be parsed, `InvalidInput` that names every bad field."""
        raw: dict[str, Any] = {name: path_params[name] for name in self._path_fields}
        if QUERY in self._fields:
            raw[QUERY] = self._parse_query(query_string)
        elif query_string:
            raw.update(self._parse_query(query_string))
        arguments: dict[str, Any] = {}
        problems: list[dict[str, str]] = []
        if self._fields or raw:
            try:
                arguments.update(self._url_params.validate_python(raw).__dict__)
            except ValidationError as error:
                problems = _field_problems(error, QUERY)
        return self._with_body(arguments, problems, body)

    def _request_validator(self, operation: Operation, url_params: type[BaseModel]) -> tuple[Any, Any]:
        """A function that splits the validated parameters of a JSON-RPC request into arguments, and the validator of the whole
        request; `(None, None)` where no single model takes all parameters."""
        models = {name: self._fields[name] for name in (QUERY, BODY) if name in self._fields}
        if any(model_of(kind).model_config.get("extra") != "forbid" for kind in models.values()):
            return None, None
        params: Any
        split: Callable[[BaseModel], dict[str, Any]]
        if not models:
            params, split = url_params, vars
        elif len(self._fields) == 1:
            [(name, params)] = models.items()
            split = partial(_whole, name)
        elif all(map(_is_plain, models.values())):
            flat: Any = {
                name: (field.annotation, field) for kind in models.values() for name, field in kind.model_fields.items()
            }
            flat |= {name: (self._fields[name], ...) for name in self._path_fields}
            params = create_model(operation.name.replace(".", "_"), __config__=ConfigDict(extra="forbid"), **flat)
            split = partial(_separate, self._path_fields, models)
        else:
            return None, None
        fields: Any = {
            "jsonrpc": Literal["2.0"],
            "id": NotRequired[CallId],
            "method": Literal[operation.name],
            "params": params,
        }
        return split, TypeAdapter(TypedDict("Request", fields)).validator  # type: ignore[operator]

    def from_request(self, data: bytes) -> tuple[int | str | None, dict[str, Any]] | None:
        """Id, None for a notification, and arguments of a request object, parsed once. None for all but a valid one: `from_rpc`
        says what is wrong."""
        if self._request is None or b"NaN" in data or b"Infinity" in data:
            return None
        if data.count(b",") > MANY_PROBLEMS:
            return None  # not before the call is admitted: the validator may make an object of each member
        try:
            request = self._request.validate_json(data, strict=True)
        except ValidationError:
            return None
        params = request["params"]
        if self._floats and not _is_finite(params):
            return None
        return request.get("id"), self._split(params)

    def from_rpc(self, params: dict[str, Any]) -> dict[str, Any]:
        """The same for the parameters of an RPC call: path, query and body fields together."""
        if endless := [name for name, value in params.items() if not _is_finite(value)]:
            raise InvalidInput([NOT_FINITE | {"field": name[:200]} for name in endless[:MAX_PROBLEMS]])
        raw: dict[str, Any] = {field: {} for field in (QUERY, BODY) if field in self._fields}
        for name, value in params.items():
            field = self._owners.get(name, name)
            if field in (QUERY, BODY) and field in raw:
                raw[field][name] = value
            else:
                raw[name] = value
        body = to_json(raw.pop(BODY)) if self._body is not None else b""
        arguments: dict[str, Any] = {}
        problems: list[dict[str, str]] = []
        if self._fields or raw:
            try:
                arguments.update(self._url_params.validate_json(to_json(raw), strict=True).__dict__)
            except ValidationError as error:
                problems = _field_problems(error, QUERY)
        return self._with_body(arguments, problems, body)

    def _with_body(self, arguments: dict[str, Any], problems: list[dict[str, str]], body: bytes) -> dict[str, Any]:
        if self._body is not None:
            if not body:
                raise Malformed("the body is empty; a JSON object is expected")
            if b"NaN" in body or b"Infinity" in body:
                _refuse_non_finite(body)
            try:
                arguments[BODY] = self._body.validate_json(body, strict=True)
            except ValidationError as error:
                problems += _field_problems(error, BODY)
        if self._floats:
            problems += [NOT_FINITE | {"field": name} for name, value in arguments.items() if not _is_finite(value)]
        if problems:
            raise InvalidInput(problems[:MAX_PROBLEMS])
        return arguments

    def _parse_query(self, query_string: bytes) -> dict[str, Any]:
        if not query_string:
            return {}
        try:
            pairs = parse_qsl(
                query_string.decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=MAX_QUERY_FIELDS,
            )
        except ValueError:
            raise Malformed("the query string is not valid") from None
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in self._query_lists:
                values.setdefault(name, []).append(value)
            else:
                values[name] = value
        return values


def _whole(name: str, params: BaseModel) -> dict[str, Any]:
    return {name: params}


def _separate(path_fields: tuple[str, ...], models: dict[str, type[BaseModel]], params: BaseModel) -> dict[str, Any]:
    values, given = params.__dict__, params.model_fields_set
    arguments = {name: values[name] for name in path_fields}
    for name, kind in models.items():
        fields = kind.model_fields.keys()
        arguments[name] = kind.model_construct(given & fields, **{field: values[field] for field in fields})
    return arguments


def _is_plain(kind: Any) -> bool:
    """Whether the fields of a model, taken into another one, are validated as in it: they alone decide what is accepted, and an
    instance is made of their values alone."""
    if not isinstance(kind, type) or not issubclass(kind, BaseModel):
        return False
    model: Any = kind.__pydantic_core_schema__
    return (
        model["type"] == "model"
        and model["schema"]["type"] == "model-fields"
        and not any(map(model.get, _OWN_WAYS))
        and not kind.__pydantic_decorators__.field_validators
        and fields_of(kind).keys() == kind.model_fields.keys()
        and {*kind.model_config} <= _HARMLESS
    )


def _list_fields(annotation: Any) -> frozenset[str]:
    """The fields of a query that may be given several times."""
    return frozenset(
        name for name, field in fields_of(annotation).items() if get_origin(field.annotation) in (list, set, tuple)
    )


def _refuse_non_finite(data: bytes) -> None:
    """Pydantic's parser takes the names of numbers that JSON does not have (RFC 8259, section 6)."""
    try:
        from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise Malformed(f"not valid JSON: {str(error)[:120]}") from None


def _may_be_float(schema: Any) -> bool:
    """Whether what a JSON schema describes can hold a float; so can what it does not describe."""
    if isinstance(schema, list):
        return any(map(_may_be_float, schema))
    if not isinstance(schema, dict):
        return False
    untyped = [
        item
        for item in schema.get("properties", {}).values()
        if not {"type", "$ref", "anyOf", "enum", "const"} & {*item}
    ]
    open_ended = (
        schema.get("additionalProperties") is True or schema.get("items") == {} or schema in ({}, {"type": "object"})
    )
    return bool(untyped) or open_ended or schema.get("type") == "number" or any(map(_may_be_float, schema.values()))


def _is_finite(value: Any) -> bool:
    """`1e999` is read as infinity, which JSON cannot say back (RFC 8259, section 6)."""
    match value:
        case float():
            return math.isfinite(value)
        case BaseModel():
            return all(map(_is_finite, value.__dict__.values()))
        case dict():
            return all(map(_is_finite, value.values()))
        case list() | tuple() | set():
            return all(map(_is_finite, value))
    return True


def _field_problems(error: ValidationError, part: str) -> list[dict[str, str]]:
    """By field; what is wrong with `part` as a whole is named after it. Raises `Malformed` for what is no JSON."""
    if error.error_count() > MANY_PROBLEMS:
        return [{"field": part, "message": f"More than {MANY_PROBLEMS} fields are wrong", "type": "too_many_problems"}]
    problems = []
    for item in error.errors(include_url=False, include_input=False):
        if item["type"] == "json_invalid":
            raise Malformed(f"not valid JSON: {item['ctx']['error'][:120]}")
        location = [str(step) for step in item["loc"]]
        if part == QUERY and location[0] == QUERY:
            location = location[1:]
        problems.append({"field": ".".join(location)[:200] or part, "message": item["msg"], "type": item["type"]})
    return problems[:MAX_PROBLEMS]
