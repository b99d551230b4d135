"""From an `Authorization` header to a caller, the same way for HTTP and WebSocket."""

from hw_server.auth.principal import Principal
from hw_server.auth.sessions import Revocations, SessionStore
from hw_server.auth.tokens import TokenVerifier
from hw_server.errors import Unauthenticated


class Authentication:
    def __init__(self, verifier: TokenVerifier, revocations: Revocations, sessions: SessionStore) -> None:
        self._verifier = verifier
        self._revocations = revocations
        self._sessions = sessions

    async def by_header(self, value: bytes | None, client_ip: str | None, user_agent: bytes | None) -> Principal | None:
        """None without a header; raises `Unauthenticated` for anything but a good bearer token."""
        if value is None:
            return None
        scheme, _, token = value.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("malformed")
        return await self.by_token(token.strip(), client_ip, user_agent)

    async def by_token(self, token: str, client_ip: str | None, user_agent: bytes | None) -> Principal:
        """The caller; raises `Unauthenticated`."""
        principal = self._verifier.cached(token) or await self._verifier.verify(token)
        await self._revocations.check(principal)
        self._sessions.touch(principal, client_ip, user_agent.decode("latin-1") if user_agent else None)
        return principal

    async def check(self, principal: Principal) -> None:
        """Raises `Unauthenticated` for a caller known before whose session was revoked since."""
        await self._revocations.check(principal)
