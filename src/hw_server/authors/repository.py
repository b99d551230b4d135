"""The SQL of authors. Names of columns are constants; what a caller sends is always a parameter."""

from typing import Any, get_args

from hw_server.authors.models import Author, AuthorCreate, AuthorOrder, AuthorPatch, AuthorQuery
from hw_server.db import Connection, Where
from hw_server.operations import Sort

COLUMNS = "id, name, bio, born, created_at, updated_at"
SORT = Sort(Author, *get_args(AuthorOrder))
PATCHABLE = ("name", "bio", "born")


def _where(query: AuthorQuery) -> Where:
    return (
        Where()
        .add("strpos(lower(name), lower({})) > 0", query.name)
        .add("born >= {}", query.born_from)
        .add("born <= {}", query.born_to)
    )


async def page(db: Connection, query: AuthorQuery) -> list[Any]:
    """For `Page.from_rows`: one row more than a page holds, where there are more."""
    rows: list[Any] = await db.fetch(*SORT.statement(f"SELECT {COLUMNS} FROM authors", _where(query), query))
    return rows


async def count(db: Connection, query: AuthorQuery) -> int:
    where = _where(query)
    return int(await db.fetchval(f"SELECT count(*) FROM authors WHERE {where}", *where.args))


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


async def delete(db: Connection, author_id: int) -> Author | None:
    """Returns the author that was deleted."""
    return _author(await db.fetchrow(f"DELETE FROM authors WHERE id = $1 RETURNING {COLUMNS}", author_id))


def _author(row: Any) -> Author | None:
    return None if row is None else Author(**row)
