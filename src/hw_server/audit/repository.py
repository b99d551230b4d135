"""The SQL that reads `user_actions`."""

from typing import Any, get_args

from hw_server.audit.models import AuditEntry, AuditFilter, AuditQuery, Outcome
from hw_server.db import Connection, Where
from hw_server.operations import Sort

COLUMNS = """id, occurred_at, user_id, username, roles, action, resource, outcome, source, request_id, client_ip,
             status, duration_ms, error"""
# The resource itself, or the range of what begins with it and a slash: the next character is 0.
RESOURCE = (
    """(resource COLLATE "C" = {0} OR (resource COLLATE "C" >= {0} || '/' AND resource COLLATE "C" < {0} || '0'))"""
)
# Constants, not a parameter: a generic plan could not use the partial index on rows that did not succeed.
OUTCOMES = {outcome: f"outcome = '{outcome}'" for outcome in get_args(Outcome)}
NEWEST_FIRST, OLDEST_FIRST = Sort(AuditEntry, "-occurred_at"), Sort(AuditEntry, "occurred_at")


def _where(filters: AuditFilter) -> Where:
    where = (
        Where()
        .add("user_id = {0} OR username = {0}", filters.user)
        .add("action = {}", filters.action)
        .add(RESOURCE, filters.resource)
        .add("request_id = {}", filters.request_id)
        .add("occurred_at >= {}", filters.since)
        .add("occurred_at < {}", filters.until)
    )
    return where if filters.outcome is None else where.add(OUTCOMES[filters.outcome])


async def page(db: Connection, query: AuditQuery, sort: Sort = NEWEST_FIRST) -> list[Any]:
    """For `Page.from_rows`: one row more than a page holds, where there are more."""
    rows: list[Any] = await db.fetch(*sort.statement(f"SELECT {COLUMNS} FROM user_actions", _where(query), query))
    return rows


async def newest(db: Connection, filters: AuditFilter, limit: int) -> list[AuditEntry]:
    """The `limit` newest rows, newest first."""
    where = _where(filters)
    order = f"ORDER BY occurred_at DESC, id DESC LIMIT {int(limit)}"
    rows = await db.fetch(f"SELECT {COLUMNS} FROM user_actions WHERE {where} {order}", *where.args)
    return [AuditEntry.model_validate(dict(row)) for row in rows]


async def by_id(db: Connection, entry_id: int) -> AuditEntry | None:
    row = await db.fetchrow(f"SELECT {COLUMNS} FROM user_actions WHERE id = $1", entry_id)
    return None if row is None else AuditEntry.model_validate(dict(row))
