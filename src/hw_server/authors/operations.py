"""What can be asked of authors: each function is a route below `/api/authors` and a method of the socket.

Errors: `NotFound` (404, -32004) for an id that no author has, `Conflict` (409, -32009) for a name that is taken.
"""

from hw_server.authors import repository
from hw_server.authors.models import (
    AUTHORS_READ,
    AUTHORS_WRITE,
    Author,
    AuthorCreate,
    AuthorEvent,
    AuthorPatch,
    AuthorQuery,
)
from hw_server.errors import NotFound
from hw_server.operations import AfterCommit, CountCache, Events, Id, Operations, Page, Provided, Read, Topic, Write

operations = Operations("/authors")
TOTAL = "authors"
AuthorPage = Page[Author]
AUTHORS = Topic("authors", AuthorEvent, subscribe=AUTHORS_READ)


@operations.get("authors.list", role=AUTHORS_READ)
async def list_authors(db: Read, query: AuthorQuery, counts: Provided[CountCache]) -> AuthorPage:
    """List authors."""
    rows = await repository.page(db, query)
    total = await counts.get(TOTAL, query, lambda: repository.count(db, query))
    return AuthorPage.from_rows(rows, query, repository.SORT, total)


@operations.post("authors.create", role=AUTHORS_WRITE)
async def create_author(
    db: Write, body: AuthorCreate, counts: Provided[CountCache], after: AfterCommit, events: Events
) -> Author:
    """Create an author."""
    after.append(counts.invalidate(TOTAL))
    author = await repository.insert(db, body)
    events.publish(AUTHORS, AuthorEvent(action="created", author=author))
    return author


@operations.get("authors.get", "/{id}", role=AUTHORS_READ)
async def get_author(db: Read, id: Id) -> Author:
    """Get an author."""
    return _or_not_found(await repository.by_id(db, id), id)


@operations.put("authors.replace", "/{id}", role=AUTHORS_WRITE)
async def replace_author(
    db: Write, id: Id, body: AuthorCreate, counts: Provided[CountCache], after: AfterCommit, events: Events
) -> Author:
    """Replace an author."""
    after.append(counts.invalidate(TOTAL))
    author = _or_not_found(await repository.update(db, id, body), id)
    events.publish(AUTHORS, AuthorEvent(action="updated", author=author))
    return author


@operations.patch("authors.update", "/{id}", role=AUTHORS_WRITE)
async def update_author(
    db: Write, id: Id, body: AuthorPatch, counts: Provided[CountCache], after: AfterCommit, events: Events
) -> Author:
    """Change some fields of an author."""
    after.append(counts.invalidate(TOTAL))
    author = _or_not_found(await repository.update(db, id, body), id)
    events.publish(AUTHORS, AuthorEvent(action="updated", author=author))
    return author


@operations.delete("authors.delete", "/{id}", role=AUTHORS_WRITE)
async def delete_author(db: Write, id: Id, counts: Provided[CountCache], after: AfterCommit, events: Events) -> None:
    """Delete an author."""
    after.append(counts.invalidate(TOTAL))
    author = _or_not_found(await repository.delete(db, id), id)
    events.publish(AUTHORS, AuthorEvent(action="deleted", author=author))


def _or_not_found(author: Author | None, author_id: int) -> Author:
    if author is None:
        raise NotFound(f"there is no author {author_id}")
    return author
