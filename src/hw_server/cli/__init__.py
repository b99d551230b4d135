"""The command `hw`, one file per group of commands."""

import signal
import sys
from typing import Annotated

import typer

from hw_server import __version__
from hw_server.cli import audit, backup, config, migrate, new, remove, sessions, stack, topics
from hw_server.cli.serve import serve
from hw_server.cli.token import token

app = typer.Typer(
    name="hw",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(stack.up)
app.command()(stack.restart)
app.command()(stack.down)
app.command()(stack.status)
app.command()(stack.logs)
app.command()(stack.clean)
app.command()(serve)
app.command()(token)
app.command()(backup.backup)
app.command()(backup.restore)
app.add_typer(migrate.app, name="migrate")
app.add_typer(new.app, name="new")
app.add_typer(remove.app, name="remove")
app.add_typer(config.app, name="config")
app.add_typer(sessions.app, name="sessions")
app.add_typer(audit.app, name="audit")
app.add_typer(topics.app, name="topics")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hw-server {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run and manage hw-server."""


def _interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
    """A Ctrl-C that reached a finalizer, where Python drops every exception, comes again once that has ended."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(dropped)


def main() -> None:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = _interrupt_again
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
