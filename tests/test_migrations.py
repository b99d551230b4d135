"""Migrations that several people write: what is wrong is said in one line, and what to do."""

import ast
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from hw_server.db.contraction import contractions
from hw_server.embedded import Stack
from tests.conftest import free_port
from tests.copied import Copy

FILLED = 'op.execute("SELECT 1")'


@pytest.fixture
async def copy(stack: Stack, tmp_path: Path) -> AsyncIterator[Copy]:
    """A copy of the project with an empty database of its own."""
    url = f"postgresql://postgres:postgres@127.0.0.1:{stack.ports.postgres}"
    server = await asyncpg.connect(f"{url}/postgres")
    await server.execute("CREATE DATABASE team")
    settings = {**stack.environment(), "HW_DATABASE__URL": f"{url}/team", "HW_HTTP__PORT": str(free_port())}
    yield Copy(Copy.of_project(tmp_path).root, settings)
    await server.execute("DROP DATABASE team WITH (FORCE)")
    await server.close()


def write(copy: Copy, message: str, *, number: str | None = None) -> Path:
    """A filled migration; with `number` as another person's, who did not know of the last one."""
    path = copy.root / copy.hw(f"migrate new {message}").strip()
    path.write_text(path.read_text().replace('op.execute("")', FILLED))
    if number is not None:
        renamed = path.with_name(f"{number}_{message}.py")
        renamed.write_text(path.read_text().replace(path.stem.partition("_")[0], number))
        path.unlink()
        path = renamed
    return path


def test_a_new_one_has_the_shipped_form_and_is_refused_until_it_is_filled_in(copy: Copy) -> None:
    path = copy.root / copy.hw("migrate new", 'Add "books" & more').strip()
    assert path.name.removeprefix(path.name[:12]) == "_add_books_more.py"
    assert path.name[:12] > max(other.name[:12] for other in path.parent.glob("*.py") if other != path)
    copy.check("lint", "format")
    line = f"migrations/versions/{path.name}: upgrade is not filled in; write its SQL, or `pass` where there is nothing to do"
    for command in ("migrate up", "serve", "migrate status", "migrate down"):
        assert copy.refused(command) == f"migrations failed: {line}\n"
    assert copy.refused("migrate new another") == f"{line}\n"
    assert line in copy.run("hw migrate check").stderr
    path.write_text(path.read_text().replace('op.execute("")', FILLED))
    assert copy.hw("migrate up") == "the database is up to date\n"


def test_two_heads_are_named_and_merged(copy: Copy) -> None:
    mine = write(copy, "mine")
    aside = mine.rename(copy.root / mine.name)
    theirs = write(copy, "theirs", number="209901010001")
    aside.rename(mine)
    line = f"migrations/versions/{mine.name} and migrations/versions/{theirs.name} stand on the same one: `hw migrate merge`"
    for command in ("migrate up", "serve", "migrate new more", "migrate check"):
        assert line in copy.refused(command)
    heads = copy.run("hw migrate heads")
    assert (heads.returncode, heads.stdout.split()) == (1, [mine.name[:12], "209901010001"])
    assert copy.hw("migrate merge both").endswith("209901010002_both.py\n")
    copy.check("lint", "format", "migrations")
    assert copy.hw("migrate heads") == "209901010002\n"
    copy.hw("migrate up")
    assert copy.refused("migrate merge") == "there is only one head; nothing to merge\n"


def test_a_missing_file_and_a_number_taken_twice_are_named(copy: Copy) -> None:
    first, second = write(copy, "first"), write(copy, "second")
    first.unlink()
    line = f"{second.name} stands on revision {first.name[:12]}, which no file has: get that file, or correct down_revision"
    for command in ("migrate up", "serve", "migrate check"):
        assert line in copy.refused(command)
    second.write_text(second.read_text().replace(second.name[:12], first.name[:12]))
    second.with_name("202611239999_other.py").write_text(second.read_text())
    assert f"have the same revision {first.name[:12]}: give one of them the next number" in copy.refused("migrate up")


def test_a_database_ahead_of_the_files_is_stamped(copy: Copy) -> None:
    before = copy.hw("migrate heads").strip()
    path = write(copy, "ahead")
    copy.hw("migrate up")
    path.unlink()
    line = f"the database is at revision {path.name[:12]}, which no file in migrations/versions has: get the code that has it"
    for command in ("migrate up", "migrate status", "migrate down", "serve"):
        assert line in copy.refused(command)
    assert copy.hw(f"migrate stamp {before}") == f"the database is taken to be at {before}\n"
    assert "pending" not in copy.hw("migrate status")
    assert "Can't locate revision" in copy.refused("migrate stamp nosuch")
    copy.hw("migrate down base")
    assert copy.refused("migrate down") == "migrations failed: Relative revision -1 didn't produce 1 migrations\n"


def test_a_file_that_is_none_is_named(copy: Copy) -> None:
    (copy.root / "migrations/versions/202611240009_odd.py").write_text("revision = 1 +")
    line = "migrations/versions/202611240009_odd.py is no migration: it needs revision and down_revision\n"
    assert copy.refused("migrate heads") == line
    assert copy.refused("migrate up") == f"migrations failed: {line}"


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ('op.execute("DROP TABLE books")', "drops a table"),
        ('op.execute("ALTER TABLE books DROP isbn")', "drops a column"),
        ('op.execute("ALTER TABLE books ADD x int, DROP COLUMN IF EXISTS isbn")', "drops a column"),
        ('op.execute("ALTER TABLE books RENAME isbn TO number")', "renames"),
        ('op.execute("ALTER TABLE books ALTER isbn TYPE bigint")', "changes a type"),
        ('op.execute("alter table books alter column isbn set not null")', "wants NOT NULL"),
        (
            'op.execute("ALTER TABLE books ADD price numeric(9, 2) NOT NULL")',
            "adds a column that is NOT NULL without a default",
        ),
        ('op.drop_column("books", "isbn")', "drops a column"),
        ('op.alter_column("books", "isbn", nullable=False)', "wants NOT NULL"),
        ('op.execute("SELECT 1; DO $$ BEGIN DROP TABLE books; END $$")', "drops a table"),
    ],
)
def test_what_the_release_before_does_not_survive_is_named(statement: str, problem: str) -> None:
    source = f"def upgrade():\n    {statement}\n\ndef downgrade():\n    op.execute('DROP TABLE books')\n"
    assert contractions(ast.parse(source)) == [problem]
    assert contractions(ast.parse(f'contract = "no release reads isbn since 0.2"\n{source}')) == []


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE books (id int NOT NULL); ALTER TABLE books ADD isbn text NOT NULL",
        "ALTER TABLE books ADD isbn text NOT NULL DEFAULT '', ADD pages int",
        "ALTER TABLE books ADD number bigint GENERATED ALWAYS AS IDENTITY NOT NULL",
        "ALTER TABLE books DROP CONSTRAINT books_check, ALTER isbn DROP NOT NULL, ALTER isbn DROP DEFAULT",
        "DROP INDEX books_isbn -- DROP TABLE books",
        "COMMENT ON TABLE books IS 'RENAME or DROP TABLE'",
        "CREATE FUNCTION tidy() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DROP TABLE old; END $$",
    ],
)
def test_what_only_expands_is_in_order(statement: str) -> None:
    assert contractions(ast.parse(f"def upgrade():\n    op.execute({statement!r})\n")) == []


def test_a_contraction_is_refused_until_it_is_marked(copy: Copy) -> None:
    path = write(copy, "contract")
    path.write_text(path.read_text().replace("SELECT 1", "DROP TABLE audit_replays", 1))
    line = f"migrations/versions/{path.name} drops a table, which the release before may still use: put it into a later release"
    assert line in copy.refused("migrate check")
    path.write_text(path.read_text().replace("down_revision", 'contract = "nothing uses it since 0.2"\ndown_revision'))
    assert copy.hw("migrate check") == "the migrations are in order\n"


def test_an_error_without_text_is_named(copy: Copy) -> None:
    away = Copy(copy.root, {**copy.settings, "HW_DATABASE__URL": "postgresql://a:b@127.0.0.1:1/x"})
    assert away.refused("migrate up").startswith("the database refused: ")
    assert len(away.refused("migrate status").strip()) > len("the database refused: ")
