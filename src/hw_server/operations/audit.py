"""What the platform asks of an audit trail. `hw_server.audit` keeps it in PostgreSQL."""

from datetime import datetime
from typing import Any, NamedTuple, Protocol

from hw_server.db import Connection


class AuditRow(NamedTuple):
    """One row of `user_actions`: who, what, when, from where, with which result. The fields are its columns, in order."""

    occurred_at: datetime
    user_id: str | None
    username: str | None
    roles: list[str]
    action: str
    resource: str | None
    outcome: str  # success | denied | failure
    source: str  # http | ws | system
    request_id: str
    client_ip: str | None
    status: int | None
    duration_ms: float | None
    error: str | None
    details: dict[str, Any] | None


class AuditTrail(Protocol):
    def record(self, row: AuditRow) -> None:
        """Takes a row into the bounded queue; never waits."""

    async def insert(self, connection: Connection, row: AuditRow) -> None:
        """Writes a row in the transaction of the change it tells of."""
