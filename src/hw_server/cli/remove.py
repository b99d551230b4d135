"""`hw remove`: takes a resource out again."""

import re
from enum import StrEnum
from typing import Annotated

import typer

from hw_server.cli.project import (
    FEATURES,
    PACKAGE,
    REALMS,
    USERS,
    VERSIONS,
    Changes,
    Migration,
    Project,
    ProjectError,
    edit_features,
    edit_realm,
    edit_users,
)

app = typer.Typer(help="Remove a part of the server.", no_args_is_help=True)


class Fate(StrEnum):
    """What becomes of the table."""

    DROP = "drop"
    DELETE = "delete"
    KEEP = "keep"


def _resources() -> list[str]:
    return Project().resources()


@app.callback()
def group() -> None:
    """Remove a part of the server."""


@app.command()
def resource(
    name: Annotated[str, typer.Argument(help="As in features.py.", autocompletion=_resources)],
    migration: Annotated[
        Fate,
        typer.Option(
            help="drop: add a migration that drops the table, right for every database. delete: delete the migration "
            "that creates it and link the next one to the one before, where no database that matters has applied it. "
            "keep: leave table and migration."
        ),
    ] = Fate.DROP,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be changed.")] = False,
) -> None:
    """Remove a resource: its folder, tests, roles (both realm files and the development users), and its line in features.py.

    Applied migrations are history that databases remember, so the table goes by a new migration (`hw up` applies it; its
    downgrade creates the empty table again) unless --migration says otherwise. Git has what was removed.
    """
    try:
        project = Project()
        changes, note = plan(project, name, migration)
        lines = changes.lines()
        if not dry_run:
            changes.apply()
    except ProjectError as error:
        typer.echo(f"hw remove resource: {error}", err=True)
        raise typer.Exit(1) from None
    for line in lines:
        typer.echo(line)
    typer.echo("nothing was changed" if dry_run else f"\n{note}")


def plan(project: Project, name: str, fate: Fate) -> tuple[Changes, str]:
    """The changes, and what to do next. Raises `ProjectError`."""
    if name not in project.resources():
        known = ", ".join(project.resources()) or "none"
        raise ProjectError(f"there is no resource {name} that may go; there are: {known}")
    if referring := project.referring(name):
        raise ProjectError(f"{', '.join(referring)} refer to {name}; remove them first")
    changes = Changes(project)
    for folder in (f"{PACKAGE}/{name}", f"tests/{name}"):
        changes.delete_folder(folder)
    for realm in REALMS:
        changes.write(realm, edit_realm(changes.read(realm), name, "", add=False))
    changes.write(USERS, edit_users(changes.read(USERS), name, add=False))
    changes.write(FEATURES, edit_features(changes.read(FEATURES), remove=name))
    creation = project.created_by(name)
    if creation is None or fate is Fate.KEEP:
        return changes, f"the table {name} stays" if creation else "no migration creates a table of this name"
    if fate is Fate.DROP:
        return changes, _drop(changes, creation, name)
    return changes, _delete(project, changes, creation, name)


def _drop(changes: Changes, creation: Migration, name: str) -> str:
    from hw_server.db import revisions

    try:
        head, revision = revisions.next_revision()
    except revisions.MigrationError as error:
        raise ProjectError(str(error)) from None
    text = (
        f'"""drop {name}"""\n\nfrom alembic import op\n\nrevision = "{revision}"\ndown_revision = "{head}"\n'
        f'contract = "no release that runs has {name}"\n\n\n'
        f"def upgrade() -> None:\n{creation.downgrade}\n\ndef downgrade() -> None:\n{creation.upgrade}"
    )
    changes.write(f"{VERSIONS}/{revision}_drop_{name}.py", text)
    return f"next: `make down up`, or `hw migrate up`, drops the table {name} with its rows; release it after the code"


def _delete(project: Project, changes: Changes, creation: Migration, name: str) -> str:
    text = creation.path.read_text()
    [before] = re.findall(r"^down_revision = (.+)$", text, re.M)
    others = [migration for migration in project.migrations() if migration.revision != creation.revision]
    for other in others:
        path = str(other.path.relative_to(project.root))
        if re.search(rf"\b{name}\b", other.upgrade + other.downgrade):
            raise ProjectError(f"{path} speaks of {name} too: use --migration drop")
        later = changes.read(path)
        relinked = re.sub(rf'^(down_revision = .*)"{creation.revision}"', rf"\g<1>{before}", later, flags=re.M)
        if relinked != later:
            changes.write(path, relinked)
    changes.delete(creation.path)
    return (
        f"a database that has applied {creation.revision} keeps the table; where it was the last one applied, run "
        f"`hw migrate stamp {before.strip(chr(34))}`"
    )
