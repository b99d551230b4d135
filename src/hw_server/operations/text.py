"""Types of input that PostgreSQL can hold."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the character NUL")
    return value


Text = Annotated[str, AfterValidator(_without_nul)]
Line = Annotated[Text, Field(pattern=r"^[^\r\n]*$")]
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
