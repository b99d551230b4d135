"""What the platform asks of an audit trail. The feature `audit` keeps it in PostgreSQL."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from prometheus_client import Counter

from hw_server.db import Connection
from hw_server.operations.call import Call
from hw_server.operations.events import Statement
from hw_server.ratelimit import Rates


class AuditRow(NamedTuple):
    """One row of `user_actions`: who, what, when, from where, with which result. The fields are its columns, in order."""

    occurred_at: datetime
    user_id: str | None
    username: str | None
    roles: Sequence[str]
    action: str
    resource: str | None
    outcome: str  # success | denied | failure
    source: str  # http | ws | system
    request_id: str
    client_ip: str | None
    status: int | None
    duration_ms: float | None
    error: str | None


def action_row(
    call: Call,
    action: str,
    resource: str | None = None,
    *,
    outcome: str = "success",
    status: int | None = None,
    error: str | None = None,
) -> AuditRow:
    """A row of something that `call` did, now."""
    caller = call.caller
    return AuditRow(
        datetime.now(UTC),
        caller.sub if caller else None,
        caller.username if caller else None,
        caller.role_list if caller else (),
        action,
        resource,
        outcome,
        call.source,
        call.request_id,
        call.client_ip,
        status,
        (time.perf_counter() - call.started) * 1000,
        error,
    )


class AuditTrail(Protocol):
    """Where operations record audit rows; the feature `audit` implements it."""

    def record(self, row: AuditRow) -> None:
        """Puts a row into the bounded queue; never waits."""

    async def insert(self, connection: Connection, row: AuditRow, also: Statement | None = None) -> None:
        """Writes a row in the transaction of its change. `also` runs in the same statement; its parameters are numbered from
        `len(row) + 1`. Errors are raised by the COMMIT that has to follow."""

    async def write(self, row: AuditRow) -> None:
        """Returns once the row is durable, in PostgreSQL or on disk; raises `Unavailable` where neither takes it."""


class Failures:
    """Records refusals and failures, at most `audit.failures_per_minute` of one caller, who can cause them without end. Further
    ones are only counted."""

    def __init__(self, trail: AuditTrail, per_minute: int, suppressed: Counter) -> None:
        self._trail = trail
        self._rates = Rates(per_minute)
        self._suppressed = suppressed

    def record(self, call: Call, action: str, resource: str | None, status: int, code: str | None = None) -> None:
        """Counts for the caller or, where there is none, for the address."""
        if not self._rates.take(call.budget_key):
            self._suppressed.inc()
            return
        outcome = "denied" if status in (401, 403) else "failure"
        self._trail.record(action_row(call, action, resource, outcome=outcome, status=status, error=code))
