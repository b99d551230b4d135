"""Grafana's role reads what its panels need: the audit trail"""

from alembic import op

revision = "202611260030"
down_revision = "202611240020"


def upgrade() -> None:
    # The native stack has no such role. Its rights on later tables came from default privileges, which end too.
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') THEN
                ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM grafana;
                REVOKE ALL ON ALL TABLES IN SCHEMA public FROM grafana;
                GRANT SELECT ON user_actions TO grafana;
            END IF;
        END $$
    """)


def downgrade() -> None:
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') THEN
                ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO grafana;
                GRANT SELECT ON ALL TABLES IN SCHEMA public TO grafana;
            END IF;
        END $$
    """)
