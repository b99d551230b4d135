import logging

import structlog

from hw_server.auth import Principal
from hw_server.errors import NotFound
from hw_server.operations import AfterCommit, CountCache, Id, Operations, Page, Provided, Read, Write
from tests.notes import repository
from tests.notes.models import (
    NOTES_READ,
    NOTES_WRITE,
    Note,
    NoteCount,
    NoteCreate,
    NotePatch,
    NoteQuery,
    TagQuery,
)

log = structlog.get_logger()
library = logging.getLogger("tests.library")
operations = Operations("/notes")
TOTAL = "notes"
NotePage = Page[Note]


@operations.get("notes.list", role=NOTES_READ)
async def list_notes(db: Read, query: NoteQuery, counts: Provided[CountCache]) -> NotePage:
    """List notes."""
    rows = await repository.page(db, query)
    total = await counts.get(TOTAL, query, lambda: repository.count(db, query))
    return NotePage.from_rows(rows, query, repository.SORT, total)


# Before the literal paths beside it, which are matched first all the same.
@operations.get("notes.get", "/{id}", role=NOTES_READ)
async def get_note(db: Read, id: Id) -> Note:
    """Get a note."""
    return _existing(await repository.by_id(db, id), id)


@operations.get("notes.count", "/count", public=True)
async def count_notes(db: Read, caller: Principal | None) -> NoteCount:
    """Count all notes, for anybody."""
    total = await repository.count(db, NoteQuery())
    return NoteCount(total=total, asked_by=caller.username if caller else None)


@operations.get("notes.tagged", "/tagged", role=NOTES_READ)
async def list_tagged_notes(db: Read, query: TagQuery) -> NotePage:
    """List the notes that have all the tags; logs, as a feature does and as a library does."""
    log.info("tags_wanted", tags=query.tags)
    library.warning("tags are slow")
    return NotePage(items=await repository.tagged(db, query.tags), per_page=100)


@operations.post("notes.create", role=NOTES_WRITE)
async def create_note(db: Write, body: NoteCreate, counts: Provided[CountCache], after: AfterCommit) -> Note:
    """Create a note."""
    after.append(counts.invalidate(TOTAL))
    return await repository.insert(db, body)


@operations.post("notes.announce", "/announced", role=NOTES_WRITE)
async def announce_note(db: Write, body: NoteCreate, after: AfterCommit) -> Note:
    """Create a note; what follows the commit fails."""

    async def fail() -> None:
        raise RuntimeError("nobody listens")

    after.append(fail)
    return await repository.insert(db, body)


@operations.put("notes.replace", "/{id}", role=NOTES_WRITE)
async def replace_note(db: Write, id: Id, body: NoteCreate, counts: Provided[CountCache], after: AfterCommit) -> Note:
    """Replace a note."""
    after.append(counts.invalidate(TOTAL))
    return _existing(await repository.update(db, id, body), id)


@operations.patch("notes.update", "/{id}", role=NOTES_WRITE)
async def update_note(db: Write, id: Id, body: NotePatch, counts: Provided[CountCache], after: AfterCommit) -> Note:
    """Change some fields of a note."""
    after.append(counts.invalidate(TOTAL))
    return _existing(await repository.update(db, id, body), id)


@operations.delete("notes.delete", "/{id}", role=NOTES_WRITE)
async def delete_note(db: Write, id: Id, counts: Provided[CountCache], after: AfterCommit) -> None:
    """Delete a note."""
    after.append(counts.invalidate(TOTAL))
    if not await repository.delete(db, id):
        raise NotFound(f"there is no note {id}")


def _existing(note: Note | None, note_id: int) -> Note:
    if note is None:
        raise NotFound(f"there is no note {note_id}")
    return note
