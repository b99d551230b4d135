"""OpenID Connect Back-Channel Logout 1.0: the provider reports, in a signed token, that a session has ended."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from hw_server.auth.sessions import SessionStore
from hw_server.auth.tokens import MAX_CLAIM, TokenVerifier, as_seconds, storable
from hw_server.errors import Malformed, Unauthenticated
from hw_server.http.dependencies import call_of, provided, public
from hw_server.http.problems import problem_responses
from hw_server.operations import AuditTrail, action_row
from hw_server.settings import OidcSettings, Settings

router = APIRouter(tags=["sessions"])

PATH = "/auth/backchannel-logout"
ACTION = "sessions.backchannel_logout"
EVENT = "http://schemas.openid.net/event/backchannel-logout"
MAX_AGE = 300  # seconds since `iat`


@router.post(
    PATH,
    operation_id=ACTION,
    dependencies=[public()],  # the token's signature lets the provider in
    responses=problem_responses(400, 413, 422, 429, 500, 503),
)
async def backchannel_logout(
    request: Request,
    settings: Annotated[Settings, provided(Settings)],
    verifier: Annotated[TokenVerifier, provided(TokenVerifier)],
    sessions: Annotated[SessionStore, provided(SessionStore)],
    trail: Annotated[AuditTrail, provided(AuditTrail)],
    logout_token: Annotated[str, Form()] = "",
) -> Response:
    """End the sessions that a logout token of the provider names. 400 for anything but a good one."""
    call = call_of(request)
    try:
        sid, sub = await _end(logout_token, settings.oidc, verifier, sessions)
    except Malformed as refusal:
        # Failures of exempt routes are not recorded, as no rate limit bounds them; this one is what an attack looks like.
        row = action_row(call, ACTION, PATH[1:], outcome="denied", status=refusal.status, error=refusal.code)
        trail.record(row)
        raise
    call.resource = f"sessions/{sid}" if sid is not None else f"users/{sub}"
    return Response(status_code=200, headers={"Cache-Control": "no-store"})


async def _end(
    token: str, settings: OidcSettings, verifier: TokenVerifier, sessions: SessionStore
) -> tuple[str | None, str | None]:
    """Ends what a logout token names and returns that. Raises `Malformed` for a token that is refused, or `Unavailable`."""
    try:
        header, claims, _ = await verifier.claims(token, settings.client_id, ["iat", "jti", "events"])
    except Unauthenticated as error:
        raise Malformed(f"the logout token is refused: {error.reason}") from None
    sid, sub = _subject(header, claims, settings.leeway)
    if await sessions.is_replayed(claims["jti"]):
        raise Malformed("the logout token is a replay")
    if sid is not None:
        await sessions.revoke(sid)
    else:
        assert sub is not None
        await sessions.revoke_user(sub)
    # Last, so that the provider may send the same token again after a failure.
    await sessions.mark_replayed(claims["jti"], MAX_AGE * 2)
    return sid, sub


def _subject(header: dict[str, Any], claims: dict[str, Any], leeway: float) -> tuple[str | None, str | None]:
    """`sid` and `sub` of a token that the signature check has passed; raises `Malformed`."""
    events, issued_at = claims["events"], as_seconds(claims["iat"])
    sid, sub = claims.get("sid"), claims.get("sub")
    if str(header.get("typ", "logout+jwt")).lower() not in ("logout+jwt", "jwt"):
        raise Malformed("the logout token has the wrong type")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise Malformed("the logout token has no back-channel logout event")
    if "nonce" in claims or not _usable(claims["jti"]):
        raise Malformed("the logout token has a nonce or no usable jti")
    if issued_at is None or not -leeway <= time.time() - issued_at <= MAX_AGE:
        raise Malformed("the logout token is too old")
    if not all(value is None or _usable(value) for value in (sid, sub)):
        raise Malformed("the logout token's sid or sub is not usable")
    if sid is None and sub is None:
        raise Malformed("the logout token names no session")
    return sid, sub


def _usable(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_CLAIM and storable(value)
