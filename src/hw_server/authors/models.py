"""What an author is: as stored and answered, as created, as changed; and how authors are listed."""

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hw_server.operations import Date, Line, PageQuery, Patch, Text

AUTHORS_READ, AUTHORS_WRITE = "authors:read", "authors:write"
Name = Annotated[Line, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Bio = Annotated[Text, StringConstraints(max_length=5000)]
AuthorOrder = Literal["id", "-id", "name", "-name", "born", "-born"]


class Author(BaseModel):
    """An author as stored. `created_at` and `updated_at` are in UTC."""

    id: int
    name: str
    bio: str
    born: date | None
    created_at: datetime
    updated_at: datetime


class AuthorEvent(BaseModel):
    """What subscribers of the topic `authors` get: the author as it is now, or was when it was deleted."""

    action: Literal["created", "updated", "deleted"]
    author: Author


class AuthorCreate(BaseModel):
    """A new author, or all fields of one to replace. Unknown fields are refused; blanks around `name` are removed."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Unique.")
    bio: Bio = ""
    born: Date | None = None


class AuthorPatch(Patch):
    """What is left out stays as it is."""

    name: Name = ""
    bio: Bio = ""
    born: Date | None = None


class AuthorQuery(PageQuery):
    """Filters and order of the list; dates are inclusive. Unknown parameters are refused."""

    name: Text | None = Field(None, max_length=200, description="Part of the name, in any case.")
    born_from: Date | None = None
    born_to: Date | None = None
    sort: AuthorOrder = Field("id", description="`-` sorts downwards.")
