"""The heart: one declaration of an operation makes an HTTP route and a JSON-RPC method."""

from hw_server.operations.audit import AuditRow, AuditTrail, action_row
from hw_server.operations.call import Call
from hw_server.operations.deadlines import Deadlines
from hw_server.operations.declaration import SIGNED_IN, Operation, Operations, role_in_words
from hw_server.operations.events import Events
from hw_server.operations.executor import BoundOperation, Executor, authorize
from hw_server.operations.feature import Feature, Reference, Seed, load_features
from hw_server.operations.fields import Id, Line, Patch, Text
from hw_server.operations.injection import AfterCommit, Provided, Read, Socket, Write
from hw_server.operations.pagination import CountCache, CursorQuery, Page, PageQuery
from hw_server.operations.sorting import Sort
from hw_server.operations.topic import History, Topic

__all__ = [
    "SIGNED_IN",
    "AfterCommit",
    "AuditRow",
    "AuditTrail",
    "BoundOperation",
    "Call",
    "CountCache",
    "CursorQuery",
    "Deadlines",
    "Events",
    "Executor",
    "Feature",
    "History",
    "Id",
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
    "Write",
    "action_row",
    "authorize",
    "load_features",
    "role_in_words",
]
