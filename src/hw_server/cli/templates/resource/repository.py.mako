"""The SQL of ${plural_words}. Names of columns are constants; what a caller sends is always a parameter."""

from typing import Any, get_args

from hw_server.${name}.models import ${cls}, ${cls}Create, ${cls}Order, ${cls}Patch, ${cls}Query
from hw_server.db import Connection, Where
from hw_server.operations import Sort

COLUMNS = "id, name, description, ${parent.singular + "_id, " if parent else ""}created_at, updated_at"
WRITABLE = ("name", "description"${f', "{parent.singular}_id"' if parent else ""})
SORT = Sort(${cls}, *get_args(${cls}Order))


def _where(query: ${cls}Query) -> Where:
% if parent:
    return (
        Where()
        .add("strpos(lower(name), lower({})) > 0", query.name)
        .add("${parent.singular}_id = {}", query.${parent.singular}_id)
    )
% else:
    return Where().add("strpos(lower(name), lower({})) > 0", query.name)
% endif


async def page(db: Connection, query: ${cls}Query) -> list[Any]:
    """For `Page.from_rows`: one row more than a page holds, where there are more."""
    rows: list[Any] = await db.fetch(*SORT.statement(f"SELECT {COLUMNS} FROM ${name}", _where(query), query))
    return rows


async def count(db: Connection, query: ${cls}Query) -> int:
    where = _where(query)
    return int(await db.fetchval(f"SELECT count(*) FROM ${name} WHERE {where}", *where.args))


async def by_id(db: Connection, ${singular}_id: int) -> ${cls} | None:
    return _${singular}(await db.fetchrow(f"SELECT {COLUMNS} FROM ${name} WHERE id = $1", ${singular}_id))


async def insert(db: Connection, body: ${cls}Create) -> ${cls}:
    parameters = ", ".join(f"${"$"}{number}" for number in range(1, len(WRITABLE) + 1))
    row = await db.fetchrow(
        f"INSERT INTO ${name} ({', '.join(WRITABLE)}) VALUES ({parameters}) RETURNING {COLUMNS}",
        *(getattr(body, name) for name in WRITABLE),
    )
    return ${cls}(**row)


async def update(db: Connection, ${singular}_id: int, body: ${cls}Create | ${cls}Patch) -> ${cls} | None:
    """Sets the fields of a whole ${words}, or those that a patch names; None where there is no such ${words}."""
    names = [name for name in WRITABLE if isinstance(body, ${cls}Create) or name in body.model_fields_set]
    sets = "".join(f"{name} = ${"$"}{number}, " for number, name in enumerate(names, 2))
    row = await db.fetchrow(
        f"UPDATE ${name} SET {sets}updated_at = now() WHERE id = $1 RETURNING {COLUMNS}",
        ${singular}_id,
        *(getattr(body, name) for name in names),
    )
    return _${singular}(row)


async def delete(db: Connection, ${singular}_id: int) -> ${cls} | None:
    """Returns the ${words} that was deleted."""
    return _${singular}(await db.fetchrow(f"DELETE FROM ${name} WHERE id = $1 RETURNING {COLUMNS}", ${singular}_id))


def _${singular}(row: Any) -> ${cls} | None:
    return None if row is None else ${cls}(**row)
