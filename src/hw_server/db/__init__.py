"""PostgreSQL: the pool, the two ways to use it, pagination, migrations."""

from hw_server.db.pool import Connection, Database

__all__ = ["Connection", "Database"]
