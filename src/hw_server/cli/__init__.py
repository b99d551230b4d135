"""The command `hw`, one file per group of commands."""

import sys

import typer

from hw_server.cli import audit, config, migrate, new, remove, sessions, stack
from hw_server.cli.serve import serve
from hw_server.cli.token import token

app = typer.Typer(
    name="hw",
    help="Run and manage hw-server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(stack.up)
app.command()(stack.down)
app.command()(stack.status)
app.command()(stack.logs)
app.command()(stack.clean)
app.command()(serve)
app.command()(token)
app.add_typer(migrate.app, name="migrate")
app.add_typer(new.app, name="new")
app.add_typer(remove.app, name="remove")
app.add_typer(config.app, name="config")
app.add_typer(sessions.app, name="sessions")
app.add_typer(audit.app, name="audit")


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
