"""PostgreSQL: the pool, the two ways to use it, conditions of statements, migrations."""

from hw_server.db.pool import Connection, Database
from hw_server.db.where import Where

__all__ = ["Connection", "Database", "Where"]
