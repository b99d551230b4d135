"""The audit trail: every change with its own transaction, everything else in batches; and how to read it."""

from hw_server.audit.operations import operations
from hw_server.audit.router import router
from hw_server.operations import Feature

feature = Feature("audit", operations, router)
