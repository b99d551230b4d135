"""authors"""

from alembic import op

revision = "202611230002"
down_revision = "202611230001"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE authors (
            id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name       text        NOT NULL CONSTRAINT authors_name_key UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
            bio        text        NOT NULL DEFAULT '' CHECK (length(bio) <= 5000),
            born       date,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now()
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE authors")
