"""The audit trail: the row of a change in its own transaction, all others in batches; and how to read it."""

from hw_server.audit.operations import operations
from hw_server.audit.partitions import Partitions
from hw_server.audit.router import router
from hw_server.audit.writer import AuditWriter
from hw_server.db import Database
from hw_server.observability.metrics import Metrics
from hw_server.operations import AuditTrail, Feature
from hw_server.settings import Settings

feature = Feature(
    "audit",
    operations,
    router,
    provides={AuditTrail: lambda parts: AuditWriter(parts[Settings].audit, parts[Database], parts[Metrics])},
    services=(
        lambda parts: parts[AuditTrail],
        lambda parts: Partitions(parts[Settings].audit.retention_months, parts[Database]),
    ),
)
