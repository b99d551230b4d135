"""The orders of a list and the cursors in them. Every order ends in `id`, in ORDER BY, in the condition and in the cursor, so
that rows of one sort value are neither skipped nor listed twice."""

import base64
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_json

from hw_server.db import Where
from hw_server.errors import InvalidInput
from hw_server.operations.fields import Text

# What PostgreSQL can hold; a cursor comes from the caller.
HELD = {str: Text, int: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]}


class Order:
    """One order: `-born` is downwards by `born`, tied by `id`. Rows without a value come last upwards and first downwards, as
    PostgreSQL has it."""

    def __init__(self, model: type[BaseModel], name: str, table: str = "") -> None:
        self.name = name
        self._column = name.removeprefix("-")
        if self._column not in model.model_fields or "id" not in model.model_fields:
            raise ValueError(f"a list of {model.__name__} cannot be sorted by {name}: it needs {self._column} and id")
        annotation: Any = model.model_fields[self._column].annotation
        kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        self._nullable = NoneType in kinds
        self._down = name.startswith("-")
        self._single = self._column == "id"
        prefix = f"{table}." if table else ""
        self._sql_column, self._sql_id = f"{prefix}{self._column}", f"{prefix}id"
        direction = " DESC" if self._down else ""
        tie = "" if self._single else f", {self._sql_id}{direction}"
        self.clause = f"ORDER BY {self._sql_column}{direction}{tie}"
        held = tuple(HELD.get(kind, kind) for kind in kinds)
        fields = (HELD[int],) if self._single else (Union[held], HELD[int])  # noqa: UP007
        self._cursor: TypeAdapter[Any] = TypeAdapter(tuple[Literal[name], *fields])  # type: ignore[valid-type]

    def cursor(self, row: Any) -> str:
        """The position of a row: opaque text that holds the order and the row's sort values."""
        values = (self.name, row["id"]) if self._single else (self.name, row[self._column], row["id"])
        return base64.urlsafe_b64encode(to_json(values)).rstrip(b"=").decode()

    def condition(self, cursor: str, args: list[Any]) -> str:
        """The SQL condition of the rows after a position, whose values are added to `args`. Raises `InvalidInput` for a
        cursor that this order did not make."""
        try:
            data = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
            values = self._cursor.validate_json(data)[1:]
        except ValueError:
            problem = {"field": "cursor", "message": f"is not a cursor of this list by {self.name}", "type": "cursor"}
            raise InvalidInput([problem]) from None
        column, row_id, beyond = self._sql_column, self._sql_id, "<" if self._down else ">"
        if values[0] is None:
            args.append(values[1])
            tied = f"{column} IS NULL AND {row_id} {beyond} ${len(args)}"
            return f"({tied} OR {column} IS NOT NULL)" if self._down else f"({tied})"
        args += values
        if self._single:
            return f"{row_id} {beyond} ${len(args)}"
        behind = f"({column}, {row_id}) {beyond} (${len(args) - 1}, ${len(args)})"
        return f"({behind} OR {column} IS NULL)" if self._nullable and not self._down else behind


class Sort:
    """The orders in which a list of `model` may be read: `Sort(Author, "id", "-id", "born", "-born")`. The first is taken for
    a query without a field `sort`. `table` stands before the columns where a join makes their names ambiguous.

    Each name is a field of the model and a column of the list. Raises ValueError for one that is not; an index on the
    column, and better on (column, id), serves both directions.
    """

    def __init__(self, model: type[BaseModel], *names: str, table: str = "") -> None:
        self._orders = {name: Order(model, name, table) for name in names}
        self._first = names[0]

    def order(self, query: Any) -> Order:
        return self._orders[getattr(query, "sort", self._first)]

    def statement(self, select: str, where: Where, query: Any) -> tuple[Any, ...]:
        """A statement and its arguments, for `db.fetch(*...)`: the rows of the page that `query` asks for, and one more
        where there are more. `select` is all that stands before WHERE. Raises `InvalidInput` for a cursor of another order.
        """
        order = self.order(query)
        args = [*where.args]
        conditions = str(where)
        if query.cursor:
            conditions += f" AND {order.condition(query.cursor, args)}"
        args.append(query.per_page + 1)
        sql = f"{select} WHERE {conditions} {order.clause} LIMIT ${len(args)}"
        if query.offset:
            args.append(query.offset)
            sql += f" OFFSET ${len(args)}"
        return (sql, *args)
