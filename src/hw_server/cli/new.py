"""`hw new`: writes a resource that is green at once."""

import builtins
import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hw_server.cli.project import (
    FEATURES,
    PACKAGE,
    REALMS,
    USERS,
    VERSIONS,
    Changes,
    Project,
    ProjectError,
    edit_features,
    edit_realm,
    edit_users,
)

app = typer.Typer(help="Write a new part of the server.", no_args_is_help=True)
TEMPLATES = Path(__file__).parent / "templates"
LONGEST = 30  # letters; a constraint's name holds two of them and PostgreSQL cuts names after 63 bytes
# Fixtures and variables of the generated files, by which a single row may not be called.
TAKEN_WORDS = frozenset(
    [
        "alice",
        "after",
        "body",
        "browser",
        "counts",
        "database",
        "dave",
        "db",
        "description",
        "feature",
        "fields",
        "five",
        "guarded",
        "id",
        "local",
        "missing",
        "name",
        "operations",
        "page",
        "provider",
        "query",
        "repository",
        "request",
        "rows",
        "serve",
        "server",
        "stack",
        "stranger",
        "token",
        "total",
        "where",
    ]
)
# What the generated files import.
TAKEN_CLASSES = frozenset(
    [
        "AfterCommit",
        "Annotated",
        "Any",
        "Base",
        "Connection",
        "Count",
        "Description",
        "Events",
        "Feature",
        "Field",
        "Fields",
        "Id",
        "Line",
        "Literal",
        "Name",
        "Note",
        "NotFound",
        "Operations",
        "Page",
        "Provided",
        "Read",
        "Reference",
        "Running",
        "Seed",
        "Sort",
        "Text",
        "Token",
        "Topic",
        "Where",
        "Write",
    ]
)
SQL_WORDS = frozenset(["references", "values"])  # reserved in PostgreSQL, of those that may be plurals


@dataclass(frozen=True)
class Names:
    """`loan_cards`, `loan_card`, `LoanCard`, and the words for people."""

    name: str
    singular: str

    @property
    def cls(self) -> str:
        return "".join(part.capitalize() for part in self.singular.split("_"))

    @property
    def upper(self) -> str:
        return self.name.upper()

    @property
    def words(self) -> str:
        return self.singular.replace("_", " ")

    @property
    def plural_words(self) -> str:
        return self.name.replace("_", " ")

    @property
    def article(self) -> str:
        return "an" if self.singular[0] in "aeio" else "a"

    @property
    def path(self) -> str:
        return f"/{self.name.replace('_', '-')}"

    def variables(self) -> dict[str, str]:
        parts = ("name", "singular", "cls", "upper", "words", "plural_words", "article", "path")
        return {part: getattr(self, part) for part in parts}


def _resources() -> list[str]:
    return Project().resources()


@app.callback()
def group() -> None:
    """Write a new part of the server."""


@app.command()
def resource(
    name: Annotated[str, typer.Argument(help="Plural, such as `books` or `loan_cards`: folder, table and path.")],
    belongs_to: Annotated[
        str | None,
        typer.Option(
            help="A resource that each row refers to: a foreign key, a filter, and words for both sides.",
            autocompletion=_resources,
        ),
    ] = None,
    singular: Annotated[
        str | None, typer.Option(help="One row, where the rule for plurals is wrong: `--singular person`.")
    ] = None,
    topic: Annotated[
        bool, typer.Option("--topic", help="Publish each creation, change and deletion to a topic of the same name.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be written.")] = False,
) -> None:
    """Write a resource with a name and a description: its folder in src/hw_server, its migration, its roles in both realm
    files and for the development users, its tests, and its line in features.py. `hw remove resource` undoes it.

    Nothing is changed where anything is refused or fails.
    """
    try:
        project = Project()
        names = check_name(project, name, singular)
        changes, migration = plan(project, names, belongs_to, topic=topic)
        lines = changes.lines()
        if not dry_run:
            changes.apply()
    except ProjectError as error:
        typer.echo(f"hw new resource: {error}", err=True)
        raise typer.Exit(1) from None
    for line in lines:
        typer.echo(line)
    if dry_run:
        typer.echo("nothing was written")
        return
    typer.echo(
        f"\nnext: give {names.plural_words} their own columns in {PACKAGE}/{name}/models.py and {migration};\n"
        f"      `make check` runs their tests with all others; `make down up` applies the migration and gives alice, bob\n"
        f"      and dave their roles; Keycloak imports a realm once: give an existing one {name}:read and {name}:write"
    )


def check_name(project: Project, name: str, singular: str | None = None) -> Names:
    """Raises `ProjectError` that says what is expected."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ProjectError(
            f"{name!r} is no name of a resource: lower-case letters, digits and single `_`, as in `books`"
        )
    if len(name) > LONGEST:
        raise ProjectError(f"{name} is longer than {LONGEST} letters")
    if name in project.features():
        raise ProjectError(f"{name} is in {FEATURES} already")
    if keyword.iskeyword(name) or name in SQL_WORDS:
        raise ProjectError(f"{name} is a reserved word of Python or SQL; choose another name")
    for path in (f"{PACKAGE}/{name}", f"{PACKAGE}/{name}.py", f"tests/{name}", f"tests/{name}.py"):
        if (project.root / path).exists():
            raise ProjectError(f"{name} is taken by {path}; choose another name")
    if (migration := project.created_by(name)) is not None:
        raise ProjectError(f"the table {name} exists: {migration.path.relative_to(project.root)} creates it")
    names = Names(name, singular or _singular(name))
    if names.singular == name or not names.singular.isidentifier() or not names.singular.islower():
        raise ProjectError(f"--singular {names.singular}: a lower-case word that differs from {name} is expected")
    taken = names.cls in TAKEN_CLASSES or names.singular in TAKEN_WORDS
    if keyword.iskeyword(names.singular) or hasattr(builtins, names.singular) or taken:
        raise ProjectError(f"one of the {name} would be called `{names.singular}`, which is taken; give --singular")
    return names


def _singular(name: str) -> str:
    for pattern, ending in ((r"([^aeiou])ies$", r"\1y"), (r"(ss|sh|ch|x|[^aeo]us)es$", r"\1"), (r"([^siu])s$", r"\1")):
        singular, count = re.subn(pattern, ending, name)
        if count and singular:
            return singular
    raise ProjectError(f"{name} is no plural that ends in s, as `books` does; for others give --singular")


def plan(project: Project, names: Names, belongs_to: str | None, *, topic: bool) -> tuple[Changes, str]:
    """The changes, and the path of the migration. Raises `ProjectError`."""
    from mako.template import Template

    from hw_server.db import revisions

    ancestors = _ancestors(project, belongs_to) if belongs_to else []
    try:
        head, revision = revisions.next_revision()
    except revisions.MigrationError as error:
        raise ProjectError(str(error)) from None
    variables: dict[str, Any] = {
        **names.variables(),
        "parent": ancestors[-1] if ancestors else None,
        "ancestors": ancestors,
        "topic": topic,
        "revision": revision,
        "down_revision": f'"{head}"' if head else "None",
    }
    changes = Changes(project)
    migration = f"{VERSIONS}/{revision}_{names.name}.py"
    for template, path in (
        *((f"resource/{file}", f"{PACKAGE}/{names.name}/{file}")
          for file in ("__init__.py", "models.py", "repository.py", "operations.py")),
        ("migration.py", migration),
        ("tests/__init__.py", f"tests/{names.name}/__init__.py"),
        ("tests/conftest.py", f"tests/{names.name}/conftest.py"),
        ("tests/test_resource.py", f"tests/{names.name}/test_{names.name}.py"),
    ):  # fmt: skip
        text = Template(filename=str(TEMPLATES / f"{template}.mako"), strict_undefined=True).render(**variables)  # noqa: S702
        changes.write(path, text)
    for realm in REALMS:
        changes.write(realm, edit_realm(changes.read(realm), names.name, names.plural_words, add=True))
    changes.write(USERS, edit_users(changes.read(USERS), names.name, add=True))
    changes.write(FEATURES, edit_features(changes.read(FEATURES), add=names.name))
    return changes, migration


def _ancestors(project: Project, name: str) -> list[Names]:
    """The resource to belong to, behind those that it belongs to itself."""
    if name not in project.resources():
        known = ", ".join(project.resources()) or "none"
        raise ProjectError(f"--belongs-to {name}: there is no such resource; there are: {known}")
    if project.created_by(name) is None:
        raise ProjectError(f"--belongs-to {name}: no migration creates a table {name}")
    cls = project.class_of(name)
    if cls is None:
        raise ProjectError(f"--belongs-to {name}: {PACKAGE}/{name}/models.py has no class of its rows")
    names = Names(name, re.sub(r"(?<!^)(?=[A-Z])", "_", cls).lower())
    above = [other for other in project.references(name) if other != name and other in project.resources()]
    return [*(item for other in above for item in _ancestors(project, other)), names]
