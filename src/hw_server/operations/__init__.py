"""The heart: one declaration of an operation makes an HTTP route and a JSON-RPC method."""

from hw_server.operations.audit import AuditRow, AuditTrail, FailureLimit, action_row
from hw_server.operations.call import Call
from hw_server.operations.deadlines import Deadlines
from hw_server.operations.declaration import SIGNED_IN, Operation, Operations
from hw_server.operations.executor import BoundOperation, Executor, authorize
from hw_server.operations.feature import Feature, Seed, load_features
from hw_server.operations.fields import Id, Line, Text
from hw_server.operations.injection import AfterCommit, Provided, Read, Socket, Write
from hw_server.operations.json_limits import limit_members
from hw_server.operations.pagination import CountCache, Cursor, Page, PageQuery
from hw_server.operations.turns import Turns

__all__ = [
    "SIGNED_IN",
    "AfterCommit",
    "AuditRow",
    "AuditTrail",
    "BoundOperation",
    "Call",
    "CountCache",
    "Cursor",
    "Deadlines",
    "Executor",
    "FailureLimit",
    "Feature",
    "Id",
    "Line",
    "Operation",
    "Operations",
    "Page",
    "PageQuery",
    "Provided",
    "Read",
    "Seed",
    "Socket",
    "Text",
    "Turns",
    "Write",
    "action_row",
    "authorize",
    "limit_members",
    "load_features",
]
