"""The files in `migrations/versions`, and whether the database has them all: without Alembic, whose import is a third of a
server's start and stays in its memory."""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from hw_server.db.contraction import contractions
from hw_server.db.pool import connect_options
from hw_server.settings import DatabaseSettings

EMPTY = """\
\"\"\"{message}\"\"\"

from alembic import op

revision = "{revision}"
down_revision = {down_revision}


def upgrade() -> None:
    op.execute("")


def downgrade() -> None:
    op.execute("")
"""
MERGE = """\
\"\"\"{message}\"\"\"

revision = "{revision}"
down_revision = {down_revision}


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
"""


class MigrationError(Exception):
    """What is wrong with the migrations, and what to do about it, in one line."""


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """One migration as its file declares it; `unfilled` are its functions that hold the template's empty statement, `contracts`
    is what it takes from the release before without saying so."""

    path: Path
    revision: str
    down: tuple[str, ...]
    unfilled: tuple[str, ...]
    contracts: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "MigrationFile":
        """Raises `MigrationError` for a file that is no migration."""
        try:
            tree = ast.parse(path.read_text())
            values = {
                target.id: ast.literal_eval(node.value)
                for node in tree.body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name) and target.id in ("revision", "down_revision")
            }
            down = values["down_revision"] or ()
        except (SyntaxError, ValueError, KeyError):
            raise MigrationError(f"{shown(path)} is no migration: it needs revision and down_revision") from None
        unfilled = [
            node.name for node in tree.body if isinstance(node, ast.FunctionDef) and any(map(_empty, ast.walk(node)))
        ]
        below = (down,) if isinstance(down, str) else tuple(down)
        return cls(path, values["revision"], below, tuple(unfilled), tuple(contractions(tree)))


def folder() -> Path:
    """`migrations/` beside the source tree, or in the working directory of an installed server."""
    for candidate in (Path(__file__).resolve().parents[3] / "migrations", Path.cwd() / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise FileNotFoundError("migrations/ not found; run from the project's folder")


def files() -> list[MigrationFile]:
    """All migrations by name; raises `MigrationError` for a file that is none."""
    return [MigrationFile.read(path) for path in sorted((folder() / "versions").glob("*.py"))]


def heads() -> list[str]:
    """The revisions that no other one stands on; more than one where two people wrote one at the same time."""
    migrations = files()
    below = {revision for file in migrations for revision in file.down}
    return [file.revision for file in migrations if file.revision not in below]


def problems(migrations: list[MigrationFile] | None = None) -> list[str]:
    """What is wrong with the files, each in one line that says what to do."""
    migrations = files() if migrations is None else migrations
    known = Counter(file.revision for file in migrations)
    lines = [
        f"{shown(file.path)}: {function} is not filled in; write its SQL, or `pass` where there is nothing to do"
        for file in migrations
        for function in file.unfilled
    ]
    for revision, number in known.items():
        if number > 1:
            same = " and ".join(shown(file.path) for file in migrations if file.revision == revision)
            lines.append(
                f"{same} have the same revision {revision}: give one of them the next number, file name included"
            )
    lines += [
        f"{shown(file.path)} stands on revision {down}, which no file has: get that file, or correct down_revision"
        for file in migrations
        for down in file.down
        if down not in known
    ]
    below = {revision for file in migrations for revision in file.down}
    tops = [file for file in migrations if file.revision not in below]
    if len(tops) > 1 and not lines:
        names = " and ".join(shown(file.path) for file in tops)
        lines.append(f"{names} stand on the same one: `hw migrate merge` joins them")
    return lines


def contracting(migrations: list[MigrationFile]) -> list[str]:
    """Migrations that the release before does not survive, each in one line. They can be applied: what runs is for the
    operator to know."""
    return [
        f"{shown(file.path)} {' and '.join(file.contracts)}, which the release before may still use: put it into a later "
        f'release and say so in the file, contract = "why nothing uses it any more"'
        for file in migrations
        if file.contracts
    ]


def check() -> None:
    """Raises `MigrationError` with the first of the `problems`."""
    for line in problems():
        raise MigrationError(line)


async def all_applied(settings: DatabaseSettings) -> bool:
    """Whether the database is at the head. False, too, where the files are wrong or it cannot be asked: `migrations.upgrade` says
    what is the matter."""
    try:
        if problems():
            return False
        connection = await asyncpg.connect(**connect_options(settings), timeout=settings.connect_timeout)
        try:
            rows = await connection.fetch("SELECT version_num FROM alembic_version")
        finally:
            await connection.close(timeout=settings.connect_timeout)
    except (OSError, MigrationError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return False
    return [row["version_num"] for row in rows] == heads()


def next_revision() -> tuple[str | None, str]:
    """The head (None where there is no migration yet) and the number of the next one: the day and a count, as in
    `202611240001`, above all others. Raises `MigrationError` where there are two heads or a file is wrong."""
    check()
    return next(iter(heads()), None), _next_number([file.revision for file in files()])


def new(message: str) -> Path:
    """Writes an empty migration and returns its path; raises `MigrationError` where the others are not in order."""
    head, revision = next_revision()
    return _write(EMPTY, message, revision, f'"{head}"' if head else "None")


def merge(message: str = "merge") -> Path:
    """Writes a migration that joins two heads and returns its path; raises `MigrationError` where there is only one."""
    tops = heads()
    if len(tops) < 2:
        raise MigrationError("there is only one head; nothing to merge")
    down = ", ".join(f'"{top}"' for top in tops)
    return _write(MERGE, message, _next_number([file.revision for file in files()]), f"({down})")


def shown(path: Path) -> str:
    """Relative to the project."""
    return str(path.relative_to(folder().parent))


def _empty(node: ast.AST) -> bool:
    """`op.execute("")`"""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "op.execute" and node.args):
        return False
    [statement, *_] = node.args
    return isinstance(statement, ast.Constant) and not str(statement.value).strip()


def _next_number(revisions: list[str]) -> str:
    today = int(f"{datetime.now(UTC):%Y%m%d}0000")
    return str(max([today, *(int(revision) for revision in revisions if re.fullmatch(r"\d{12}", revision))]) + 1)


def _write(template: str, message: str, revision: str, down_revision: str) -> Path:
    slug = re.sub(r"\W+", "_", message.lower()).strip("_")[:40]
    path = folder() / "versions" / f"{revision}_{slug}.py"
    doc = message.replace("\\", "/").replace('"', "'").strip() or revision
    path.write_text(template.format(message=doc, revision=revision, down_revision=down_revision))
    return path
