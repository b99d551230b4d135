"""Who is calling: token verification, sessions, revocation."""

from hw_server.auth.principal import Principal

__all__ = ["Principal"]
