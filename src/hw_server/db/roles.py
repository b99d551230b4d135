"""Two roles: one owns the tables and applies migrations, the other serves and may do what it needs to."""

from sqlalchemy import Connection, text

APPEND_ONLY = frozenset({"user_actions"})  # the serving role must not rewrite the audit trail
READ_ONLY = frozenset({"alembic_version"})

# What the owner has made and the role has no rights on yet: a right that a migration gave or took by name stays as it is.
# Partitions are reached through their parents alone.
NEW_RELATIONS = text("""
    SELECT c.relname AS name, c.relkind::text AS kind, c.oid::regclass::text AS target FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S') AND NOT c.relispartition
      AND c.relowner = current_user::regrole
      AND NOT EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee = CAST(:role AS regrole))
""")
# Functions that run with the owner's rights are for the serving role alone; all others may be called by everybody.
NEW_FUNCTIONS = text("""
    SELECT p.oid::regprocedure::text AS target FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef AND p.proowner = current_user::regrole
      AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = CAST(:role AS regrole))
""")


def grant(connection: Connection, role: str) -> None:
    """Gives `role` what serving needs on everything that the connection's role owns in the schema `public`; nothing where both
    are the same. Raises SQLAlchemy's DBAPIError for a role that does not exist."""
    quoted = connection.scalar(text("SELECT quote_ident(:role)"), {"role": role})
    if connection.scalar(text("SELECT CAST(:role AS regrole) = current_user::regrole"), {"role": quoted}):
        return
    if not connection.scalar(text("SELECT has_schema_privilege(:role, 'public', 'USAGE')"), {"role": role}):
        connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {quoted}"))
    for relation in connection.execute(NEW_RELATIONS, {"role": quoted}).all():
        kind = "SEQUENCE" if relation.kind == "S" else "TABLE"
        connection.execute(
            text(f"GRANT {_rights(relation.name, relation.kind)} ON {kind} {relation.target} TO {quoted}")
        )
    for function in connection.execute(NEW_FUNCTIONS, {"role": quoted}).all():
        connection.execute(text(f"REVOKE ALL ON FUNCTION {function.target} FROM PUBLIC"))
        connection.execute(text(f"GRANT EXECUTE ON FUNCTION {function.target} TO {quoted}"))


def _rights(name: str, kind: str) -> str:
    if kind == "S":
        return "USAGE, SELECT"
    if name in READ_ONLY:
        return "SELECT"
    return "SELECT, INSERT" if name in APPEND_ONLY else "SELECT, INSERT, UPDATE, DELETE"
