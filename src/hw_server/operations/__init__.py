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
    load_features,
)
from hw_server.operations.execution import Executor, authorize
from hw_server.operations.fields import Id, Line, Text
from hw_server.operations.pagination import CountCache, Cursor, Page, PageQuery

__all__ = [
    "SIGNED_IN",
    "AfterCommit",
    "AuditRow",
    "AuditTrail",
    "Call",
    "CountCache",
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
    "Write",
    "action_row",
    "authorize",
    "load_features",
]
