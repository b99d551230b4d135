"""Types of input: what PostgreSQL can hold, and the body of a PATCH."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Line = Annotated[str, Field(pattern=r"^[^\x00\r\n]*$")]
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]


def _without_defaults(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


class Patch(BaseModel):
    """The body of a PATCH: what is left out stays as it is, so write the fields of `model_fields_set` alone. Each field has a
    default, which stands for nothing and may be one that the field would refuse; the schema names none."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_defaults)
