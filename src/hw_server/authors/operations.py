from hw_server.authors import repository
from hw_server.authors.models import (
    AUTHORS_READ,
    AUTHORS_WRITE,
    Author,
    AuthorCreate,
    AuthorPatch,
    AuthorQuery,
)
from hw_server.errors import NotFound
from hw_server.operations import AfterCommit, CountCache, Id, Operations, Page, Provided, Read, Write

operations = Operations("/authors")
TOTAL = "authors"
AuthorPage = Page[Author]


@operations.get("authors.list", role=AUTHORS_READ)
async def list_authors(db: Read, query: AuthorQuery, counts: Provided[CountCache]) -> AuthorPage:
    """List authors."""
    rows = await repository.page(db, query)
    total = await counts.get(TOTAL, query, lambda: repository.count(db, query))
    return AuthorPage.from_rows(rows, query, repository.SORT, total)


@operations.post("authors.create", role=AUTHORS_WRITE)
async def create_author(db: Write, body: AuthorCreate, counts: Provided[CountCache], after: AfterCommit) -> Author:
    """Create an author."""
    after.append(counts.invalidate(TOTAL))
    return await repository.insert(db, body)


@operations.get("authors.get", "/{id}", role=AUTHORS_READ)
async def get_author(db: Read, id: Id) -> Author:
    """Get an author."""
    return _found(await repository.by_id(db, id), id)


@operations.put("authors.replace", "/{id}", role=AUTHORS_WRITE)
async def replace_author(
    db: Write, id: Id, body: AuthorCreate, counts: Provided[CountCache], after: AfterCommit
) -> Author:
    """Replace an author."""
    after.append(counts.invalidate(TOTAL))
    return _found(await repository.update(db, id, body), id)


@operations.patch("authors.update", "/{id}", role=AUTHORS_WRITE)
async def update_author(
    db: Write, id: Id, body: AuthorPatch, counts: Provided[CountCache], after: AfterCommit
) -> Author:
    """Change some fields of an author."""
    after.append(counts.invalidate(TOTAL))
    return _found(await repository.update(db, id, body), id)


@operations.delete("authors.delete", "/{id}", role=AUTHORS_WRITE)
async def delete_author(db: Write, id: Id, counts: Provided[CountCache], after: AfterCommit) -> None:
    """Delete an author."""
    after.append(counts.invalidate(TOTAL))
    if not await repository.delete(db, id):
        raise NotFound(f"there is no author {id}")


def _found(author: Author | None, author_id: int) -> Author:
    if author is None:
        raise NotFound(f"there is no author {author_id}")
    return author
