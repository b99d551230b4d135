from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hw_server.operations import Date, Line, PageQuery, Patch, Text

NOTES_READ, NOTES_WRITE = "notes:read", "notes:write"
Title = Annotated[Line, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Body = Annotated[Text, StringConstraints(max_length=5000)]
NoteOrder = Literal["id", "-id", "title", "-title", "due", "-due"]


class Note(BaseModel):
    id: int
    title: str
    text: str
    due: date | None
    created_at: datetime
    updated_at: datetime


class NoteCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: Title = Field(description="Unique.")
    text: Body = ""
    due: Date | None = None


class NotePatch(Patch):
    """What is left out stays as it is."""

    title: Title = ""
    text: Body = ""
    due: Date | None = None


class NoteQuery(PageQuery):
    title: Text | None = Field(None, max_length=200, description="Part of the title, in any case.")
    due_from: Date | None = None
    due_to: Date | None = None
    sort: NoteOrder = Field("id", description="`-` sorts downwards.")


class TagQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tags: list[Text] = Field(max_length=3, description="Words that the text has, each after a `#`.")


class NoteCount(BaseModel):
    total: int
    asked_by: str | None = Field(description="The caller's name, None for a stranger.")
