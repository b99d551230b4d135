"""Domain errors as `application/problem+json` (RFC 9457)."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hw_server.errors import (
    DomainError,
    InvalidInput,
    Malformed,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from hw_server.operations.binding import MAX_PROBLEMS

MEDIA_TYPE = "application/problem+json"
REF = "#/components/schemas/{model}"


class FieldProblem(BaseModel):
    """What is wrong with one field: its path with dots, a message for people, and a type for programs."""

    field: str
    message: str
    type: str


class Problem(BaseModel):
    """An error as every route answers it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank",
                "title": NotFound.title,
                "status": NotFound.status,
                "code": NotFound.code,
                "request_id": "5f0c6f3f6e9a4b0f",
            }
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="Stable, for programs.")
    detail: str | None = None
    request_id: str
    errors: list[FieldProblem] | None = Field(None, description="With `validation_error`: what is wrong, by field.")
    retry_after: int | None = Field(None, description="With `rate_limited`: seconds.")


def domain_error(error: Exception) -> DomainError | None:
    """The domain error that an exception stands for, None for a defect of the server."""
    match error:
        case DomainError():
            return error
        case RequestValidationError():
            problems = error.errors()
            if any(item["type"] == "json_invalid" for item in problems):
                return Malformed("not valid JSON")
            return InvalidInput(
                [
                    {"field": ".".join(map(str, item["loc"][1:])), "message": item["msg"], "type": item["type"]}
                    for item in problems[:MAX_PROBLEMS]
                ]
            )
        case HTTPException(status_code=404):
            return NotFound("no route matches this path")
        case HTTPException(status_code=405):
            return MethodNotAllowed(allow=(error.headers or {}).get("Allow", ""))
        case HTTPException(status_code=status) if 400 <= status < 500:
            return Malformed(str(error.detail))
    return None


def problem_body(error: DomainError, request_id: str) -> bytes:
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "request_id": request_id,
    }
    if error.detail:
        document["detail"] = error.detail
    document.update(error.extra)
    return to_json(document)


def problem_response(error: DomainError, request_id: str) -> Response:
    headers = {}
    match error:
        case RateLimited():
            headers["Retry-After"] = str(error.retry_after)
        case Unauthenticated(reason="missing"):
            headers["WWW-Authenticate"] = 'Bearer realm="hw"'
        case Unauthenticated():
            headers["WWW-Authenticate"] = (
                f'Bearer realm="hw", error="invalid_token", error_description="{error.reason}"'
            )
        case MethodNotAllowed():
            headers["Allow"] = error.extra["allow"]
        case Unavailable():
            headers["Retry-After"] = "1"
    return Response(problem_body(error, request_id), error.status, headers, MEDIA_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for these statuses. A `model` would stand under `application/json`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": REF.format(model=Problem.__name__)}}}
    return {status: {"content": content} for status in sorted(statuses)}


def problem_schemas() -> dict[str, Any]:
    """What `problem_responses` refers to, for the components of the OpenAPI document."""
    schema = Problem.model_json_schema(ref_template=REF)
    return {**schema.pop("$defs"), Problem.__name__: schema}
