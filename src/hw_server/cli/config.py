"""`hw config`: what the settings are and what is wrong with them."""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer
from pydantic import BaseModel, SecretStr

from hw_server.cli.serve import settings_or_exit
from hw_server.cli.stack import running_environment
from hw_server.settings import variable_of

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True)


@app.command()
def check() -> None:
    """Check the settings; exit code 2 and a line for each bad one."""
    settings_or_exit(running_environment(required=False))
    typer.echo("the settings are valid")


@app.command()
def show(
    reveal: Annotated[bool, typer.Option("--reveal", help="Print secrets too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every setting with its variable, value and meaning."""
    rows = [
        {
            "name": name,
            "variable": variable_of(name),
            "value": shown(value, reveal=reveal),
            "description": description,
        }
        for name, value, description in walk(settings_or_exit(running_environment(required=False)))
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    cells = [(item["variable"], item["value"], item["description"]) for item in rows]
    if not sys.stdout.isatty():
        widths = [max(len(row[column]) for row in cells) for column in range(2)]
        for variable, value, description in cells:
            typer.echo(f"{variable:{widths[0]}}  {value:{widths[1]}}  {description}")
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*(Column(name, overflow="fold") for name in ("Variable", "Value", "Meaning")))
    for row in cells:
        table.add_row(*row)
    Console().print(table)


def walk(group: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            yield from walk(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.description or ""


def shown(value: Any, *, reveal: bool) -> str:
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        return text if reveal else _masked(text)
    if isinstance(value, str) and not reveal and "@" in urlsplit(value).netloc:
        return _masked(value)
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return "" if value is None else str(value)


def _masked(text: str) -> str:
    """An address without its password and query; anything else not at all."""
    parts = urlsplit(text)
    if not parts.scheme or not parts.netloc:
        return "********"
    user, _, host = parts.netloc.rpartition("@")
    if ":" in user:
        host = f"{user.partition(':')[0]}:********@{host}"
    elif user:
        host = f"{user}@{host}"
    return urlunsplit(parts._replace(netloc=host, query="********" if parts.query else ""))
