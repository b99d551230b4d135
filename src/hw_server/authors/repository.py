from typing import Any

from pydantic import TypeAdapter

from hw_server.authors.models import Author, AuthorCreate, AuthorPatch, AuthorQuery
from hw_server.db import Connection

COLUMNS = "id, name, bio, born, created_at, updated_at"
AUTHORS = TypeAdapter(list[Author])
PATCHABLE = ("name", "bio", "born")


def _where(query: AuthorQuery) -> tuple[str, list[Any]]:
    clauses: list[str] = []
    args: list[Any] = []
    for value, clause in (
        (query.name, "strpos(lower(name), lower({})) > 0"),
        (query.born_from, "born >= {}"),
        (query.born_to, "born <= {}"),
    ):
        if value is not None:
            args.append(value)
            clauses.append(clause.format(f"${len(args)}"))
    return " AND ".join(clauses) or "true", args


async def page(db: Connection, query: AuthorQuery, after: tuple[Any, ...] | None) -> list[Author]:
    """One row more than a page holds, so that the caller sees whether there are more."""
    where, args = _where(query)
    column, down = query.sort.removeprefix("-"), query.sort.startswith("-")
    order = " DESC" if down else ""
    if after is not None:
        args += after
        where += f" AND {column} {'<' if down else '>'} ${len(args)}"
    args += [query.per_page + 1, query.offset]
    rows = await db.fetch(
        f"SELECT {COLUMNS} FROM authors WHERE {where} ORDER BY {column}{order} "
        f"LIMIT ${len(args) - 1} OFFSET ${len(args)}",
        *args,
    )
    return AUTHORS.validate_python([dict(row) for row in rows])


async def count(db: Connection, query: AuthorQuery) -> int:
    where, args = _where(query)
    return int(await db.fetchval(f"SELECT count(*) FROM authors WHERE {where}", *args))


async def by_id(db: Connection, author_id: int) -> Author | None:
    return _author(await db.fetchrow(f"SELECT {COLUMNS} FROM authors WHERE id = $1", author_id))


async def insert(db: Connection, body: AuthorCreate) -> Author:
    row = await db.fetchrow(
        f"INSERT INTO authors (name, bio, born) VALUES ($1, $2, $3) RETURNING {COLUMNS}",
        body.name,
        body.bio,
        body.born,
    )
    return Author(**row)


async def update(db: Connection, author_id: int, body: AuthorCreate | AuthorPatch) -> Author | None:
    """Sets the fields of a whole author, or those that a patch names."""
    names = [name for name in PATCHABLE if isinstance(body, AuthorCreate) or name in body.model_fields_set]
    sets = "".join(f"{name} = ${index}, " for index, name in enumerate(names, 2))
    row = await db.fetchrow(
        f"UPDATE authors SET {sets}updated_at = now() WHERE id = $1 RETURNING {COLUMNS}",
        author_id,
        *(getattr(body, name) for name in names),
    )
    return _author(row)


async def delete(db: Connection, author_id: int) -> bool:
    return await db.fetchval("DELETE FROM authors WHERE id = $1 RETURNING true", author_id) is True


def _author(row: Any) -> Author | None:
    return None if row is None else Author(**row)
