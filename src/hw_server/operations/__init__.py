"""The heart: one declaration of an operation makes an HTTP route and a JSON-RPC method."""

from hw_server.operations.audit import AuditRow, AuditTrail, Call, action_row
from hw_server.operations.deadlines import Deadlines
from hw_server.operations.declaration import (
    SIGNED_IN,
    AfterCommit,
    Feature,
    Operation,
    Operations,
    Provided,
    Read,
    Write,
)
from hw_server.operations.execution import Executor, authorize
from hw_server.operations.pages import Cursor, Page, PageQuery, Totals
from hw_server.operations.text import Id, Line, Text

__all__ = [
    "SIGNED_IN",
    "AfterCommit",
    "AuditRow",
    "AuditTrail",
    "Call",
    "Cursor",
    "Deadlines",
    "Executor",
    "Feature",
    "Id",
    "Line",
    "Operation",
    "Operations",
    "Page",
    "PageQuery",
    "Provided",
    "Read",
    "Text",
    "Totals",
    "Write",
    "action_row",
    "authorize",
]
