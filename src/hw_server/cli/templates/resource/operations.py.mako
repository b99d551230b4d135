"""What can be asked of ${plural_words}: each function is a route below `/api${path}` and a method of the socket."""

from hw_server.${name} import repository
from hw_server.${name}.models import (
    ${upper}_READ,
    ${upper}_WRITE,
    ${cls},
    ${cls}Create,
% if topic:
    ${cls}Event,
% endif
    ${cls}Patch,
    ${cls}Query,
)
from hw_server.errors import NotFound
from hw_server.operations import AfterCommit, CountCache${", Events" if topic else ""}, Id, Operations, Page, Provided, Read, ${"Topic, " if topic else ""}Write
<%def name="changed(action, row)">\
% if topic:
    ${singular} = ${row}
    events.publish(${upper}, ${cls}Event(action="${action}", ${singular}=${singular}))
    return ${singular}\
% else:
    return ${row}\
% endif
</%def>\
<% events = ", events: Events" if topic else "" %>
operations = Operations("${path}")
TOTAL = "${name}"  # names the cached totals, which every write invalidates
${cls}Page = Page[${cls}]
% if topic:
${upper} = Topic("${name}", ${cls}Event, subscribe=${upper}_READ)
% endif


@operations.get("${name}.list", role=${upper}_READ)
async def list_${name}(db: Read, query: ${cls}Query, counts: Provided[CountCache]) -> ${cls}Page:
    """List ${plural_words}."""
    rows = await repository.page(db, query)
    total = await counts.get(TOTAL, query, lambda: repository.count(db, query))
    return ${cls}Page.from_rows(rows, query, repository.SORT, total)


@operations.post("${name}.create", role=${upper}_WRITE)
async def create_${singular}(
    db: Write, body: ${cls}Create, counts: Provided[CountCache], after: AfterCommit${events}
) -> ${cls}:
    """Create ${article} ${words}."""
    after.append(counts.invalidate(TOTAL))
${changed("created", "await repository.insert(db, body)")}


@operations.get("${name}.get", "/{id}", role=${upper}_READ)
async def get_${singular}(db: Read, id: Id) -> ${cls}:
    """Get ${article} ${words}."""
    return _or_not_found(await repository.by_id(db, id), id)


@operations.put("${name}.replace", "/{id}", role=${upper}_WRITE)
async def replace_${singular}(
    db: Write, id: Id, body: ${cls}Create, counts: Provided[CountCache], after: AfterCommit${events}
) -> ${cls}:
    """Replace ${article} ${words}."""
    after.append(counts.invalidate(TOTAL))
${changed("updated", "_or_not_found(await repository.update(db, id, body), id)")}


@operations.patch("${name}.update", "/{id}", role=${upper}_WRITE)
async def update_${singular}(
    db: Write, id: Id, body: ${cls}Patch, counts: Provided[CountCache], after: AfterCommit${events}
) -> ${cls}:
    """Change some fields of ${article} ${words}."""
    after.append(counts.invalidate(TOTAL))
${changed("updated", "_or_not_found(await repository.update(db, id, body), id)")}


@operations.delete("${name}.delete", "/{id}", role=${upper}_WRITE)
async def delete_${singular}(
    db: Write, id: Id, counts: Provided[CountCache], after: AfterCommit${events}
) -> None:
    """Delete ${article} ${words}."""
    after.append(counts.invalidate(TOTAL))
% if topic:
    ${singular} = _or_not_found(await repository.delete(db, id), id)
    events.publish(${upper}, ${cls}Event(action="deleted", ${singular}=${singular}))
% else:
    _or_not_found(await repository.delete(db, id), id)
% endif


def _or_not_found(${singular}: ${cls} | None, ${singular}_id: int) -> ${cls}:
    if ${singular} is None:
        raise NotFound(f"there is no ${words} {${singular}_id}")
    return ${singular}
