"""topics: outbox, relays, dead letters"""

from alembic import op

revision = "202611240010"
down_revision = "202611240001"


def upgrade() -> None:
    # The number of partitions is part of the stored rows: changing it needs a migration that rewrites them.
    op.execute("""
        CREATE FUNCTION topic_partition(topic text) RETURNS smallint
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        AS $$ SELECT ((hashtext(topic) & 2147483647) % 4)::smallint $$
    """)
    # Ids are drawn one by one (no CACHE): their order is the order of events in a topic.
    op.execute("""
        CREATE TABLE topic_outbox (
            id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            partition  smallint    NOT NULL,
            topic      text        NOT NULL,
            data       text        NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)
    """)
    op.execute("CREATE INDEX topic_outbox_partition ON topic_outbox (partition, id)")
    op.execute("""
        CREATE TABLE topic_relays (
            partition smallint    PRIMARY KEY,
            pid       integer,
            fence     bigint      NOT NULL DEFAULT 0,
            heartbeat timestamptz NOT NULL DEFAULT now()
        ) WITH (fillfactor = 50)
    """)
    op.execute("INSERT INTO topic_relays (partition) SELECT generate_series(0, 3)")
    op.execute("CREATE SEQUENCE topic_fences")
    op.execute("""
        CREATE TABLE topic_dead_letters (
            id         bigint      PRIMARY KEY,
            topic      text        NOT NULL,
            data       text        NOT NULL,
            error      text        NOT NULL,
            created_at timestamptz NOT NULL,
            died_at    timestamptz NOT NULL DEFAULT now()
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE topic_dead_letters, topic_relays, topic_outbox")
    op.execute("DROP SEQUENCE topic_fences")
    op.execute("DROP FUNCTION topic_partition(text)")
