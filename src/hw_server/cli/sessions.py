"""`hw sessions`: who is signed in, and ending it."""

import asyncio
import getpass
import os
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hw_server.cli.serve import settings_or_exit

if TYPE_CHECKING:
    from hw_server.auth.sessions import Session, SessionStore

T = TypeVar("T")
app = typer.Typer(help="List and end sessions.", no_args_is_help=True)


@app.command("list")
def list_sessions(
    user: Annotated[str | None, typer.Argument(help="A user's name or `sub`; default: everybody.")] = None,
) -> None:
    """List sessions, the last seen first: id, name, `sub`, address, last seen."""
    for session in sorted(_with_store(lambda store: _of(store, user)), key=lambda session: -session.last_seen_at):
        seen = datetime.fromtimestamp(session.last_seen_at).astimezone().isoformat(timespec="seconds")
        typer.echo(f"{session.id}  {session.username}  {session.sub}  {session.client_ip or '-'}  last seen {seen}")


@app.command()
def end(session_id: Annotated[str, typer.Argument(help="The session's id.")]) -> None:
    """End a session: its tokens are refused and its sockets closed on every instance."""

    async def end(store: "SessionStore") -> bool:
        known = await store.get(session_id) is not None
        if known:
            await store.revoke(session_id)
        return known

    if not _with_store(end):
        typer.echo(f"there is no session {session_id}; `hw sessions list` shows them", err=True)
        raise typer.Exit(1)
    _record("sessions.end", f"sessions/{session_id}")
    typer.echo("ended")


@app.command("end-user")
def end_user(user: Annotated[str, typer.Argument(help="The user's name or `sub`.")]) -> None:
    """End all sessions of a user."""

    async def end(store: "SessionStore") -> set[str]:
        # Nobody of that name may have a session; then it is a `sub`, whose tokens are refused all the same.
        subs = {session.sub for session in await _of(store, user)} or {user}
        for sub in subs:
            await store.revoke_user(sub)
        return subs

    for sub in sorted(_with_store(end)):
        _record("sessions.end_user", f"users/{sub}")
        typer.echo(f"ended all sessions of {sub}")


async def _of(store: "SessionStore", user: str | None) -> "list[Session]":
    return [session async for session in store.scan() if user in (None, session.sub, session.username)]


def _record(action: str, resource: str) -> None:
    """The audit row of what an operator did, by the name of the operating system's user; without PostgreSQL it is spooled."""
    from hw_server.audit.writer import AuditWriter
    from hw_server.cli.stack import running_environment
    from hw_server.db import Database
    from hw_server.errors import Unavailable
    from hw_server.observability.metrics import Metrics
    from hw_server.operations import AuditRow

    settings, metrics = settings_or_exit(running_environment()), Metrics()
    row = AuditRow(
        datetime.now(UTC), None, _operator(), (), action, resource, "success", "system", secrets.token_hex(8),
        client_ip=None, status=None, duration_ms=None, error=None,
    )  # fmt: skip

    async def write() -> None:
        db = Database(settings.database, metrics)
        try:
            await AuditWriter(settings.audit, db, metrics).write(row)
        finally:
            await db.stop()

    try:
        asyncio.run(write())
    except Unavailable as error:
        typer.echo(f"{action} of {resource} is not in the audit trail: {error.detail}", err=True)


def _operator() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def _with_store(work: "Callable[[SessionStore], Awaitable[T]]") -> T:
    from hw_server.auth.revocations import Revocations
    from hw_server.auth.sessions import SessionStore
    from hw_server.cli.stack import running_environment
    from hw_server.errors import Unavailable
    from hw_server.observability.metrics import Metrics
    from hw_server.redis import AuthRedis, Keys

    settings = settings_or_exit(running_environment())

    async def run() -> T:
        metrics = Metrics()
        redis = AuthRedis(settings.redis, metrics)
        keys = Keys(settings.redis.key_prefix)
        try:
            revocations = Revocations(settings.oidc, redis, keys, metrics)
            return await work(SessionStore(settings.oidc, redis, keys, revocations, metrics))
        finally:
            await redis.close()

    try:
        return asyncio.run(run())
    except Unavailable as error:
        typer.echo(f"{error.detail}; see `hw status`, and redis.url in `hw config show`", err=True)
        raise typer.Exit(1) from None
