"""`hw topics`: events that could not be published."""

import asyncio
import json
from typing import Annotated, Any

import typer

from hw_server.cli.serve import settings_or_exit
from hw_server.cli.stack import running_environment

app = typer.Typer(help="Look after topics.", no_args_is_help=True)
dead = typer.Typer(help="Events that Redis refused until their tries were used up.", no_args_is_help=True)
app.add_typer(dead, name="dead")
Id = Annotated[int, typer.Argument(help="Id of the dead letter, as listed.")]

RETRY = """
    WITH dead AS (DELETE FROM topic_dead_letters WHERE id = $1 RETURNING topic, data)
    INSERT INTO topic_outbox (partition, topic, data) SELECT topic_partition(topic), topic, data FROM dead RETURNING id
"""


@dead.command("list")
def list_dead(limit: Annotated[int, typer.Option(min=1, max=10_000, help="Rows at most.")] = 50) -> None:
    """Print dead letters as JSON lines, oldest first."""
    query = "SELECT id, topic, error, created_at, died_at, data FROM topic_dead_letters ORDER BY id LIMIT $1"
    for row in _fetch(query, limit):
        typer.echo(json.dumps({**row, "data": json.loads(row["data"])}, default=str))


@dead.command()
def retry(letter: Id) -> None:
    """Publish a dead letter again, as a new event at the end of its topic."""
    _one(_fetch(RETRY, letter), letter)
    typer.echo("it is in the outbox again")


@dead.command()
def discard(letter: Id) -> None:
    """Delete a dead letter."""
    _one(_fetch("DELETE FROM topic_dead_letters WHERE id = $1 RETURNING id", letter), letter)
    typer.echo("discarded")


def _one(rows: list[Any], letter: int) -> None:
    if not rows:
        typer.echo(f"there is no dead letter {letter}", err=True)
        raise typer.Exit(1)


def _fetch(query: str, argument: int) -> list[Any]:
    from hw_server.db import Database
    from hw_server.errors import Unavailable
    from hw_server.observability.metrics import Metrics

    async def run() -> list[Any]:
        db = Database(settings_or_exit(running_environment()).database, Metrics())
        try:
            async with db.read() as connection:
                return [dict(row) for row in await connection.fetch(query, argument)]
        finally:
            await db.stop()

    try:
        return asyncio.run(run())
    except Unavailable as error:
        typer.echo(f"{error.detail}; see `hw status`, and database.url in `hw config show`", err=True)
        raise typer.Exit(1) from None
