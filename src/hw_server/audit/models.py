"""Audit entries as answered, and the filters of their list."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hw_server.operations import CursorQuery, DateTime, Page, Text

AUDIT_READ = "audit:read"
Outcome = Literal["success", "denied", "failure"]


class AuditEntry(BaseModel):
    """One entry of the audit trail. `occurred_at` is in UTC, `duration_ms` in milliseconds; what does not apply is null."""

    id: int
    occurred_at: datetime
    user_id: str | None
    username: str | None
    roles: list[str]
    action: str = Field(description="Name of the operation, or `session.authenticate` and the like.")
    resource: str | None
    outcome: Outcome
    source: Literal["http", "ws", "system"]
    request_id: str
    client_ip: str | None
    status: int | None = Field(description="HTTP status, or the one that the RPC error stands for.")
    duration_ms: float | None
    error: str | None = Field(description="Code of the error.")


EntryPage = Page[AuditEntry]


class AuditFilter(BaseModel):
    """Filters, all of which have to match; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    user: Text | None = Field(None, max_length=255, description="`sub` or user name.")
    action: Text | None = Field(None, max_length=100)
    resource: Text | None = Field(None, max_length=255, description="The resource itself or what is below it.")
    outcome: Outcome | None = None
    request_id: Text | None = Field(None, max_length=64)
    since: DateTime | None = Field(None, description="First moment, with its time zone.")
    until: DateTime | None = Field(None, description="Moment after the last.")


class AuditQuery(AuditFilter, CursorQuery):
    """A page of the list, newest first: at most 500 entries."""

    per_page: int = Field(50, ge=1, le=500)
