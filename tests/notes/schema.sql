-- The layout of the example's table, so that what the bench measures stays comparable.
CREATE TABLE notes (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title      text        NOT NULL CONSTRAINT notes_title_key UNIQUE CHECK (length(title) BETWEEN 1 AND 200),
    text       text        NOT NULL DEFAULT '' CHECK (length(text) <= 5000),
    due        date,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
)
