"""${plural_words}"""

from alembic import op

revision = "${revision}"
down_revision = ${down_revision}


def upgrade() -> None:
    op.execute("""
        CREATE TABLE ${name} (
            id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name        text        NOT NULL CONSTRAINT ${name}_name_key UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
            description text        NOT NULL DEFAULT '' CHECK (length(description) <= 5000),
% if parent:
            ${parent.singular}_id bigint NOT NULL CONSTRAINT ${name}_${parent.singular}_id_fkey REFERENCES ${parent.name} (id),
% endif
            created_at  timestamptz NOT NULL DEFAULT now(),
            updated_at  timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("CREATE INDEX ${name}_created_at ON ${name} (created_at, id)")
% if parent:
    # For the list of one ${parent.words}, and for PostgreSQL to look at when ${parent.article} ${parent.words} is deleted.
    op.execute("CREATE INDEX ${name}_${parent.singular}_id ON ${name} (${parent.singular}_id, id)")
% endif


def downgrade() -> None:
    op.execute("DROP TABLE ${name}")
