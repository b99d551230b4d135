"""Operations: one declaration makes an HTTP route and a JSON-RPC method."""

from hw_server.operations.audit import AuditRow, AuditTrail, Failures, action_row
from hw_server.operations.call import Call
from hw_server.operations.deadlines import Deadlines
from hw_server.operations.declaration import PUBLIC, SIGNED_IN, Operation, Operations, role_in_words
from hw_server.operations.events import Events
from hw_server.operations.executor import BoundOperation, Executor, authorize
from hw_server.operations.feature import Feature, Reference, Seed, load_features
from hw_server.operations.fields import Date, DateTime, Id, JsonObject, Line, Patch, Text
from hw_server.operations.injection import AfterCommit, Provided, Read, Socket, Write
from hw_server.operations.json_limits import limit_members
from hw_server.operations.pagination import CountCache, CursorQuery, Page, PageQuery
from hw_server.operations.sorting import Sort
from hw_server.operations.topic import History, Topic
from hw_server.operations.turns import Turns

__all__ = [
    "PUBLIC",
    "SIGNED_IN",
    "AfterCommit",
    "AuditRow",
    "AuditTrail",
    "BoundOperation",
    "Call",
    "CountCache",
    "CursorQuery",
    "Date",
    "DateTime",
    "Deadlines",
    "Events",
    "Executor",
    "Failures",
    "Feature",
    "History",
    "Id",
    "JsonObject",
    "Line",
    "Operation",
    "Operations",
    "Page",
    "PageQuery",
    "Patch",
    "Provided",
    "Read",
    "Reference",
    "Seed",
    "Socket",
    "Sort",
    "Text",
    "Topic",
    "Turns",
    "Write",
    "action_row",
    "authorize",
    "limit_members",
    "load_features",
    "role_in_words",
]
