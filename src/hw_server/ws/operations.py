"""The operations that only the socket speaks."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hw_server.auth import Principal
from hw_server.errors import Conflict, DomainError, RateLimited, Unauthenticated, Unavailable
from hw_server.operations import SIGNED_IN, Call, Feature, JsonObject, Operations, Provided, Socket
from hw_server.settings import Settings
from hw_server.ws.codes import CloseCode
from hw_server.ws.connection import WebSocketConnection
from hw_server.ws.openrpc import OpenRpc
from hw_server.ws.sign_in import SignIn

operations = Operations()
feature = Feature("socket", operations)


class TokenParams(BaseModel):
    """The token to sign in with, never in the address."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(description="An access token.")


class SignedIn(BaseModel):
    """The user that a socket is signed in as."""

    sub: str
    username: str
    roles: list[str]
    session_id: str
    expires_at: float = Field(description="Unix time when the token expires, seconds.")


@operations.rpc("session.authenticate", public=True, audit="queued")
async def authenticate(
    body: TokenParams, call: Call, socket: Socket[WebSocketConnection], sign_in: Provided[SignIn]
) -> SignedIn:
    """Sign the socket in. A bad token, a socket too many, or a provider out of reach closes it."""
    try:
        call.caller = await sign_in.by_token(socket, body.token)
    except Conflict:
        raise
    except DomainError as error:
        code = _close_code(error)
        assert call.after_response is not None
        call.after_response.append(lambda: socket.close(code))
        raise
    return _signed_in(call, call.caller)


@operations.rpc("session.refresh", role=SIGNED_IN, audit="queued")
async def refresh(
    body: TokenParams, call: Call, socket: Socket[WebSocketConnection], sign_in: Provided[SignIn]
) -> SignedIn:
    """Give the socket a newer token of the same user."""
    return _signed_in(call, await sign_in.refresh(socket, body.token))


@operations.rpc("rpc.discover", public=True)
async def discover(openrpc: Provided[OpenRpc], settings: Provided[Settings], caller: Principal | None) -> JsonObject:
    """Get the OpenRPC document; without a token only where `http.docs` is on."""
    if caller is None and not settings.http.docs:
        raise Unauthenticated("the methods are named to those who are signed in")
    return openrpc.document


@operations.rpc("ping", public=True, audit="never")
async def ping() -> Literal["pong"]:
    """Check that the socket works."""
    return "pong"


def _close_code(error: DomainError) -> CloseCode:
    match error:
        case RateLimited():
            return CloseCode.FLOODING
        case Unavailable():
            return CloseCode.TRY_AGAIN_LATER
    return CloseCode.UNAUTHENTICATED


def _signed_in(call: Call, principal: Principal) -> SignedIn:
    call.resource = f"sessions/{principal.session_id}"
    return SignedIn(
        sub=principal.sub,
        username=principal.username,
        roles=sorted(principal.roles),
        session_id=principal.session_id,
        expires_at=principal.expires_at,
    )
