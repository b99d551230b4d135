"""Types of input: what PostgreSQL can hold, dates that are written as dates, and the body of a PATCH. And one of an answer."""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Line = Annotated[str, Field(pattern=r"^[^\x00\r\n]*$")]
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
FULL_DATE = r"\d{4}-\d\d-\d\d"
DATE_TIME = FULL_DATE + r"[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"


def _written_as(form: str, parse: Callable[[str], date], kind: str, example: str) -> BeforeValidator:
    """RFC 3339, section 5.6. Pydantic takes other forms too, and numbers in texts as seconds since 1970."""
    matches = re.compile(form, re.ASCII).fullmatch

    def parsed(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        with suppress(ValueError):  # February 30 matches
            if matches(value):
                return parse(value.upper())
        words = {"kind": kind, "example": example}
        raise PydanticCustomError(f"{kind}_parsing", "Input should be a {kind} such as {example}", words)

    return BeforeValidator(parsed)


Date = Annotated[date, _written_as(FULL_DATE, date.fromisoformat, "date", "2026-01-31")]
DateTime = Annotated[AwareDatetime, _written_as(DATE_TIME, datetime.fromisoformat, "datetime", "2026-01-31T12:00:00Z")]


class JsonObject(bytes):
    """An answer that is JSON already, which is sent as it is."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(dict[str, Any])


def _without_defaults(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


class Patch(BaseModel):
    """The body of a PATCH: what is left out stays as it is, so write the fields of `model_fields_set` alone. Each field has a
    default, which is never used and may be one that the field would refuse; the schema lists none."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_defaults)
