"""Authentication and rate limits of calls, for HTTP and the socket."""

from typing import Literal

from hw_server.auth.authentication import Authentication, bearer_token
from hw_server.errors import DomainError
from hw_server.operations import Call
from hw_server.ratelimit import Decision, RateLimiter


class Admission:
    """Authentication, then the rate limit of the caller or, where there is none, of the client's address."""

    def __init__(self, authentication: Authentication, limiter: RateLimiter) -> None:
        self._authentication = authentication
        self._limiter = limiter

    async def handshake(self, call: Call, authorization: bytes | None) -> None:
        """The same for an attempt to open a socket: counted for the address before the token is verified, as that costs most,
        and for the user after it."""
        await self._limiter.check("handshake", call.address_key)
        if authorization is not None:
            await self._authenticate(call, authorization)
            if call.caller is not None:
                await self._limiter.check("handshake", call.caller.budget_key)

    async def admit(self, scope: Literal["http", "ws"], call: Call, authorization: bytes | None = None) -> Decision:
        """Sets `call.caller` by the `Authorization` header, or checks again the caller that a socket signed in; `call.refusal`
        is why there is none, which is for the operation to raise. Raises `RateLimited`, and `Unavailable` where limits cannot
        be checked."""
        if authorization is not None or call.caller is not None:
            await self._authenticate(call, authorization)
        return await self._limiter.check(scope, call.budget_key)

    async def _authenticate(self, call: Call, authorization: bytes | None) -> None:
        try:
            if authorization is not None:
                token = bearer_token(authorization)
                call.caller = await self._authentication.authenticate(token, call.client_ip, call.user_agent)
            elif call.caller is not None:
                await self._authentication.recheck(call.caller)
        except DomainError as refusal:
            call.refusal = refusal.with_traceback(None)  # the traceback references the call: a cycle
