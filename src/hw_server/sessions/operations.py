"""The caller and sessions: routes `/api/me` and `/api/sessions`, and methods of the socket."""

from typing import Annotated

from pydantic import StringConstraints

from hw_server.auth import Principal
from hw_server.auth.sessions import Session, SessionStore
from hw_server.errors import Forbidden, NotFound
from hw_server.operations import SIGNED_IN, Operations, Provided, Text
from hw_server.sessions.models import SESSIONS_ADMIN, Me, SessionList, SessionQuery

operations = Operations()
SessionId = Annotated[Text, StringConstraints(min_length=1, max_length=255)]


@operations.get("me.get", "/me", role=SIGNED_IN)
async def get_me(caller: Principal) -> Me:
    """Get the caller."""
    return Me(
        sub=caller.sub,
        username=caller.username,
        roles=sorted(caller.roles),
        session_id=caller.session_id,
        client_id=caller.client_id,
        expires_at=caller.expires_at,
    )


@operations.get("sessions.list", "/sessions", role=SIGNED_IN)
async def list_sessions(caller: Principal, query: SessionQuery, sessions: Provided[SessionStore]) -> SessionList:
    """List the caller's sessions, newest first; another user's with `sessions:admin`."""
    if query.user not in (None, caller.sub) and SESSIONS_ADMIN not in caller.roles:
        raise Forbidden(f"the role {SESSIONS_ADMIN} is required for other users")
    rows = await sessions.of_user(query.user or caller.sub)
    return SessionList(items=[_marked(session, caller) for session in rows])


@operations.get("sessions.get", "/sessions/{sid}", role=SIGNED_IN)
async def get_session(caller: Principal, sid: SessionId, sessions: Provided[SessionStore]) -> Session:
    """Get a session of the caller; any with `sessions:admin`."""
    return _marked(await _visible(caller, sid, sessions), caller)


@operations.delete("sessions.end", "/sessions/{sid}", role=SIGNED_IN, audit="direct")
async def end_session(caller: Principal, sid: SessionId, sessions: Provided[SessionStore]) -> None:
    """End a session of the caller, any with `sessions:admin`: its tokens are refused and its sockets closed."""
    if sid != caller.session_id:
        await _visible(caller, sid, sessions)
    await sessions.revoke(sid)


async def _visible(caller: Principal, sid: str, sessions: SessionStore) -> Session:
    """Raises `NotFound` for others' sessions, too, so that their ids cannot be probed."""
    session = await sessions.get(sid)
    if session is None or (session.sub != caller.sub and SESSIONS_ADMIN not in caller.roles):
        raise NotFound("there is no such session")
    return session


def _marked(session: Session, caller: Principal) -> Session:
    return session.model_copy(update={"current": session.id == caller.session_id})
