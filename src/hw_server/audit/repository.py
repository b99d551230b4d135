from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from hw_server.audit.models import AuditEntry, AuditFilter
from hw_server.db import Connection

COLUMNS = """id, occurred_at, user_id, username, roles, action, resource, outcome, source, request_id, client_ip,
             status, duration_ms, error"""
# The resource itself, or the range of what begins with it and a slash: the next character is 0.
RESOURCE = (
    """(resource COLLATE "C" = {0} OR (resource COLLATE "C" >= {0} || '/' AND resource COLLATE "C" < {0} || '0'))"""
)
ENTRIES = TypeAdapter(list[AuditEntry])


def conditions(filters: AuditFilter) -> tuple[str, list[Any]]:
    """A WHERE clause and its arguments."""
    clauses, args = ["true"], []
    for value, clause in (
        (filters.user, "(user_id = {0} OR username = {0})"),
        (filters.action, "action = {0}"),
        (filters.resource, RESOURCE),
        (filters.request_id, "request_id = {0}"),
        (filters.since, "occurred_at >= {0}"),
        (filters.until, "occurred_at < {0}"),
    ):
        if value is not None:
            args.append(value)
            clauses.append(clause.format(f"${len(args)}"))
    if filters.outcome is not None:
        # A constant: with a parameter PostgreSQL may plan without the index of what did not succeed.
        clauses.append(f"outcome = '{filters.outcome}'")
    return " AND ".join(clauses), args


async def page(
    db: Connection, filters: AuditFilter, last: tuple[datetime, int] | None, limit: int, *, oldest_first: bool = False
) -> list[AuditEntry]:
    """Newest first unless said otherwise, from behind the position of the `last` row seen."""
    where, args = conditions(filters)
    direction, beyond = ("ASC", ">") if oldest_first else ("DESC", "<")
    if last is not None:
        args += last
        where += f" AND (occurred_at, id) {beyond} (${len(args) - 1}, ${len(args)})"
    order = f"ORDER BY occurred_at {direction}, id {direction} LIMIT {int(limit)}"
    rows = await db.fetch(f"SELECT {COLUMNS} FROM user_actions WHERE {where} {order}", *args)
    return ENTRIES.validate_python([dict(row) for row in rows])


async def by_id(db: Connection, entry_id: int) -> AuditEntry | None:
    row = await db.fetchrow(f"SELECT {COLUMNS} FROM user_actions WHERE id = $1", entry_id)
    return None if row is None else AuditEntry.model_validate(dict(row))
