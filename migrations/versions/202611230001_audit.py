"""user_actions, partitioned by month"""

from alembic import op

revision = "202611230001"
down_revision = None


def upgrade() -> None:
    op.execute("CREATE SEQUENCE user_actions_id_seq AS bigint CACHE 100")
    op.execute("""
        CREATE TABLE user_actions (
            id          bigint      NOT NULL DEFAULT nextval('user_actions_id_seq'),
            occurred_at timestamptz NOT NULL DEFAULT now(),
            user_id     text,
            username    text,
            roles       text[]      NOT NULL DEFAULT '{}',
            action      text        NOT NULL,
            resource    text,
            outcome     text        NOT NULL CHECK (outcome IN ('success', 'denied', 'failure')),
            source      text        NOT NULL CHECK (source IN ('http', 'ws', 'system')),
            request_id  text        NOT NULL,
            client_ip   text,
            status      smallint,
            duration_ms real,
            error       text,
            PRIMARY KEY (occurred_at, id)
        ) PARTITION BY RANGE (occurred_at)
    """)
    op.execute("ALTER SEQUENCE user_actions_id_seq OWNED BY user_actions.id")
    op.execute("CREATE INDEX user_actions_id ON user_actions (id)")
    op.execute("CREATE INDEX user_actions_user ON user_actions (user_id, id DESC)")
    op.execute("CREATE INDEX user_actions_request ON user_actions (request_id)")
    # Takes a row when no month's partition fits (a clock far off); empty in normal running.
    op.execute("CREATE TABLE user_actions_default PARTITION OF user_actions DEFAULT")
    # Names of spilled files whose rows have been written: a replay that crashed before removing its file is not repeated.
    op.execute("CREATE TABLE audit_replays (segment text PRIMARY KEY, replayed_at timestamptz NOT NULL DEFAULT now())")


def downgrade() -> None:
    op.execute("DROP TABLE audit_replays")
    op.execute("DROP TABLE user_actions")
