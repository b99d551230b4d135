"""Grafana's role reads the columns that its panels show"""

from alembic import op

revision = "202611270001"
down_revision = "202611260030"


def upgrade() -> None:
    # A panel of your own that shows another column needs a grant of it.
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') THEN
                REVOKE SELECT ON user_actions FROM grafana;
                GRANT SELECT (
                    occurred_at, username, action, resource, outcome, source, request_id, client_ip, duration_ms, error
                ) ON user_actions TO grafana;
            END IF;
        END $$
    """)


def downgrade() -> None:
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') THEN
                REVOKE ALL ON user_actions FROM grafana;
                GRANT SELECT ON user_actions TO grafana;
            END IF;
        END $$
    """)
