"""From an access token to a caller, the same way for HTTP and WebSocket."""

from collections.abc import Callable

from hw_server.auth.principal import Principal
from hw_server.auth.revocations import Revocations
from hw_server.auth.tokens import TokenVerifier
from hw_server.errors import Unauthenticated

Seen = Callable[[Principal, str | None, str | None], None]


def bearer_token(header: bytes) -> str:
    """The token of an `Authorization` header (RFC 6750); raises `Unauthenticated` for any other scheme."""
    scheme, _, token = header.decode("latin-1").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("malformed")
    return token


class Authentication:
    """`listeners` are told of each authentication: the caller, the client's address and its user agent."""

    def __init__(self, verifier: TokenVerifier, revocations: Revocations) -> None:
        self._verifier = verifier
        self._revocations = revocations
        self.listeners: list[Seen] = []

    async def authenticate(self, token: str, client_ip: str | None, user_agent: str | None) -> Principal:
        """Raises `Unauthenticated` for a token that is not valid or whose session was revoked, `Unavailable` where that
        cannot be told."""
        principal = self._verifier.cached(token) or await self._verifier.verify(token)
        await self._revocations.check(principal)
        for listener in self.listeners:
            listener(principal, client_ip, user_agent)
        return principal

    async def replace(self, older: Principal, newer: Principal) -> None:
        """To be called when a caller gets another token. Where it is newer and has fewer roles, older tokens of its session are
        revoked, which closes what they opened; raises `Unavailable` where that cannot be stored."""
        same = newer.session_id == older.session_id and newer.client_id == older.client_id
        if same and newer.issued_at >= older.issued_at and not older.roles <= newer.roles:
            await self._revocations.revoke_roles(newer)

    async def recheck(self, principal: Principal) -> None:
        """Raises `Unauthenticated` for a caller whose session was revoked, whose key was withdrawn, or whose token expired,
        since."""
        self._verifier.recheck(principal)
        await self._revocations.check(principal)
