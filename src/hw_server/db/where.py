"""Conditions of a WHERE clause, with their numbered parameters."""

from typing import Any


class Where:
    """The conditions of a statement, joined by AND. `{}` in a condition stands for its value, which becomes a parameter of
    the statement; the condition itself is a constant of the program, never input.

        where = Where().add("born >= {}", query.born_from).add("deleted_at IS NULL")
        await db.fetch(f"SELECT id FROM authors WHERE {where}", *where.args)
    """

    __slots__ = ("_conditions", "args")

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.args: list[Any] = []

    def add(self, condition: str, *values: Any) -> "Where":
        """Adds nothing where a value is None: a filter that was not asked for. `{0}` and `{1}` repeat and order values."""
        if values:
            if None in values:
                return self
            first = len(self.args) + 1
            self.args += values
            condition = condition.format(*(f"${number}" for number in range(first, first + len(values))))
        self._conditions.append(condition)
        return self

    def __str__(self) -> str:
        return f"({') AND ('.join(self._conditions)})" if self._conditions else "true"
