"""Runs on the connection that `hw_server.db.migrations` opens and locks."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
context.run_migrations()
