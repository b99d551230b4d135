"""The caller and lists of sessions, as answered."""

from pydantic import BaseModel, ConfigDict, Field

from hw_server.auth.sessions import Session
from hw_server.operations import Text

SESSIONS_ADMIN = "sessions:admin"


class Me(BaseModel):
    """The caller, as the access token names it."""

    sub: str
    username: str
    roles: list[str]
    session_id: str
    client_id: str
    expires_at: float = Field(description="Unix time when the token expires, seconds.")


class SessionQuery(BaseModel):
    """Whose sessions to list; without `user` the caller's own. Unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    user: Text | None = Field(None, max_length=255, description="`sub` of another user; needs `sessions:admin`.")


class SessionList(BaseModel):
    """At most 200 sessions, newest first."""

    items: list[Session]
