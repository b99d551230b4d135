from typing import Any, get_args

from pydantic import TypeAdapter

from hw_server.db import Connection, Where
from hw_server.operations import Sort
from tests.notes.models import Note, NoteCreate, NoteOrder, NotePatch, NoteQuery

COLUMNS = "id, title, text, due, created_at, updated_at"
SORT = Sort(Note, *get_args(NoteOrder))
NOTES = TypeAdapter(list[Note])
PATCHABLE = ("title", "text", "due")


def _where(query: NoteQuery) -> Where:
    return (
        Where()
        .add("strpos(lower(title), lower({})) > 0", query.title)
        .add("due >= {}", query.due_from)
        .add("due <= {}", query.due_to)
    )


async def page(db: Connection, query: NoteQuery) -> list[Any]:
    """For `Page.from_rows`: one row more than a page holds, where there are more."""
    rows: list[Any] = await db.fetch(*SORT.statement(f"SELECT {COLUMNS} FROM notes", _where(query), query))
    return rows


async def tagged(db: Connection, tags: list[str]) -> list[Note]:
    has_all = "(SELECT coalesce(bool_and(strpos(text, '#' || tag) > 0), true) FROM unnest($1::text[]) tag)"
    rows = await db.fetch(f"SELECT {COLUMNS} FROM notes WHERE {has_all} ORDER BY id LIMIT 100", tags)
    return NOTES.validate_python([dict(row) for row in rows])


async def count(db: Connection, query: NoteQuery) -> int:
    where = _where(query)
    return int(await db.fetchval(f"SELECT count(*) FROM notes WHERE {where}", *where.args))


async def by_id(db: Connection, note_id: int) -> Note | None:
    return _note(await db.fetchrow(f"SELECT {COLUMNS} FROM notes WHERE id = $1", note_id))


async def insert(db: Connection, body: NoteCreate) -> Note:
    row = await db.fetchrow(
        f"INSERT INTO notes (title, text, due) VALUES ($1, $2, $3) RETURNING {COLUMNS}", body.title, body.text, body.due
    )
    return Note(**row)


async def update(db: Connection, note_id: int, body: NoteCreate | NotePatch) -> Note | None:
    """Sets the fields of a whole note, or those that a patch names."""
    names = [name for name in PATCHABLE if isinstance(body, NoteCreate) or name in body.model_fields_set]
    sets = "".join(f"{name} = ${index}, " for index, name in enumerate(names, 2))
    row = await db.fetchrow(
        f"UPDATE notes SET {sets}updated_at = now() WHERE id = $1 RETURNING {COLUMNS}",
        note_id,
        *(getattr(body, name) for name in names),
    )
    return _note(row)


async def delete(db: Connection, note_id: int) -> bool:
    return await db.fetchval("DELETE FROM notes WHERE id = $1 RETURNING true", note_id) is True


def _note(row: Any) -> Note | None:
    return None if row is None else Note(**row)
