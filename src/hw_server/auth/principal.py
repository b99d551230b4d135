from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as a verified access token names it. `expires_at` is Unix time in seconds."""

    sub: str
    username: str
    roles: frozenset[str]
    session_id: str
    client_id: str
    issued_at: float
    expires_at: float
