"""Types of input that PostgreSQL can hold."""

from typing import Annotated

from pydantic import Field

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Line = Annotated[str, Field(pattern=r"^[^\x00\r\n]*$")]
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
