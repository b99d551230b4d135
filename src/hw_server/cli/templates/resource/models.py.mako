"""What ${article} ${words} is: as stored and answered, as created, as changed; and how ${plural_words} are listed."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hw_server.operations import ${"Id, " if parent else ""}Line, PageQuery, Patch, Text

${upper}_READ, ${upper}_WRITE = "${name}:read", "${name}:write"
Name = Annotated[Line, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Description = Annotated[Text, StringConstraints(max_length=5000)]
${cls}Order = Literal["id", "-id", "name", "-name", "created_at", "-created_at"]


class ${cls}(BaseModel):
    """${article.capitalize()} ${words} as stored. `created_at` and `updated_at` are in UTC."""

    id: int
    name: str
    description: str
% if parent:
    ${parent.singular}_id: int
% endif
    created_at: datetime
    updated_at: datetime


% if topic:
class ${cls}Event(BaseModel):
    """What subscribers of the topic `${name}` get: the ${words} as it is now, or was when it was deleted."""

    action: Literal["created", "updated", "deleted"]
    ${singular}: ${cls}


% endif
class ${cls}Create(BaseModel):
    """A new ${words}, or all fields of one to replace. Unknown fields are refused; blanks around `name` are removed."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Unique.")
    description: Description = ""
% if parent:
    ${parent.singular}_id: Id = Field(description="The ${parent.words} that it belongs to.")
% endif


class ${cls}Patch(Patch):
    """What is left out stays as it is."""

    name: Name = ""
    description: Description = ""
% if parent:
    ${parent.singular}_id: Id = 0
% endif


class ${cls}Query(PageQuery):
    """Filters and order of the list. Unknown parameters are refused."""

    name: Text | None = Field(None, max_length=200, description="Part of the name, in any case.")
% if parent:
    ${parent.singular}_id: Id | None = Field(None, description="Those of one ${parent.words}.")
% endif
    sort: ${cls}Order = Field("id", description="`-` sorts downwards.")
