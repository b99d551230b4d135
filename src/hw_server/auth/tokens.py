"""Access token verification (RFC 9068, OpenID Connect): local, with cached keys; a verified token is cached until it expires."""

import math
import time
from collections import OrderedDict
from hashlib import sha256
from typing import Any

import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)

from hw_server.auth.jwks import SigningKey, SigningKeys
from hw_server.auth.principal import Principal
from hw_server.errors import Unauthenticated, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.settings import OidcSettings

MAX_TOKEN_BYTES = 8192
MAX_CLAIM = 255  # characters of `sub` and of a session's id; a longer user name is truncated, as it identifies nobody
ACCEPTED = frozenset({"RS256", "ES256"})
REASONS: tuple[tuple[type[PyJWTError], str], ...] = (
    (ExpiredSignatureError, "expired"),
    (ImmatureSignatureError, "not_yet_valid"),
    (InvalidAudienceError, "wrong_audience"),
    (InvalidIssuerError, "wrong_issuer"),
    (InvalidSignatureError, "bad_signature"),
    (MissingRequiredClaimError, "missing_claim"),
)


class TokenVerifier:
    """Checks signature, issuer, audience, times and kind of a token. The cache is bounded and keyed by a hash of the token."""

    def __init__(self, settings: OidcSettings, keys: SigningKeys, metrics: Metrics) -> None:
        self._settings = settings
        self._keys = keys
        self._roles_path = settings.roles_claim.split(".")
        self._verified: OrderedDict[bytes, Principal] = OrderedDict()
        self._attempts = metrics.auth_attempts
        self._ok = metrics.auth_attempts.labels("ok")

    def cached(self, token: str) -> Principal | None:
        """The caller of a token that was verified before, None for any other."""
        principal = self._verified.get(sha256(token.encode("utf-8", "surrogatepass")).digest())
        if principal is None or self._expired(principal):
            return None
        if not self._keys.trusts(principal.key):
            return None
        self._ok.inc()
        return principal

    def recheck(self, principal: Principal) -> None:
        """Raises `Unauthenticated` for a caller whose token expired since, or whose key was withdrawn; `Unavailable` where the keys are
        too old to tell."""
        if self._expired(principal):
            raise Unauthenticated("expired")
        if not self._keys.trusts(principal.key):
            if self._keys.withdrawn(principal.key):
                raise Unauthenticated("unknown_key")
            raise Unavailable("the identity provider has been out of reach for too long")

    def _expired(self, principal: Principal) -> bool:
        return time.time() >= principal.expires_at + self._settings.leeway

    async def verify(self, token: str) -> Principal:
        """The caller; raises `Unauthenticated`, with one of a bounded number of reasons."""
        try:
            principal = await self._verified_principal(token)
        except Unauthenticated as error:
            self._attempts.labels(error.reason).inc()
            raise
        self._ok.inc()
        self._cache(token, principal)
        return principal

    async def claims(
        self, token: str, audience: str, required: list[str]
    ) -> tuple[dict[str, Any], dict[str, Any], SigningKey]:
        """Header, claims and key of a token signed by the provider for `audience`; raises `Unauthenticated`, and `Unavailable`
        where its key can be neither found nor ruled out."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated("too_long")
        try:
            header = jwt.get_unverified_header(token)
        except (PyJWTError, ValueError, RecursionError):
            raise Unauthenticated("malformed") from None
        kid = header.get("kid")
        if header.get("alg") not in ACCEPTED:
            raise Unauthenticated("bad_algorithm")
        if not isinstance(kid, str):
            raise Unauthenticated("unknown_key")
        # `jwk`, `jku` and `x5u` of the header are never looked at: keys come from the provider alone.
        key = await self._keys.find(kid)
        if key is None:
            raise Unauthenticated("unknown_key")
        if key.jwk.algorithm_name != header["alg"]:
            raise Unauthenticated("bad_algorithm")
        try:
            claims = jwt.decode(
                token,
                key.jwk,
                algorithms=[header["alg"]],
                audience=audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway,
                options={"require": required},
            )
        except PyJWTError as error:
            reason = next((word for kind, word in REASONS if isinstance(error, kind)), "malformed")
            raise Unauthenticated(reason) from None
        except (ValueError, RecursionError, TypeError, OverflowError):
            raise Unauthenticated("malformed") from None
        return header, claims, key

    async def _verified_principal(self, token: str) -> Principal:
        header, claims, key = await self.claims(token, self._settings.audience, ["exp", "iat", "sub"])
        if not _is_access_token(header, claims):
            raise Unauthenticated("not_an_access_token")
        sub, session_id = claims["sub"], claims.get("sid") or claims.get("jti")
        if not isinstance(sub, str) or not sub or not isinstance(session_id, str) or not session_id:
            raise Unauthenticated("missing_claim")
        name = claims.get(self._settings.username_claim)
        username = name if isinstance(name, str) and name else sub
        client_id = str(claims.get("azp") or claims.get("client_id") or "")
        roles = self._roles(claims)
        # Refused, not truncated: a part of a session's id or a `sub` could equal somebody else's.
        if len(sub) > MAX_CLAIM or len(session_id) > MAX_CLAIM:
            raise Unauthenticated("malformed")
        if not all(map(storable, (sub, session_id, str(claims.get("jti")), username, client_id, *roles))):
            raise Unauthenticated("malformed")
        issued_at, expires_at = as_seconds(claims["iat"]), as_seconds(claims["exp"])
        if issued_at is None or expires_at is None:
            raise Unauthenticated("malformed")
        signed_in = as_seconds(claims.get("auth_time"))
        return Principal(
            sub=sub,
            username=username[:MAX_CLAIM],
            roles=roles,
            session_id=session_id,
            client_id=client_id[:MAX_CLAIM],
            issued_at=issued_at,
            expires_at=expires_at,
            # Some providers say 0 where they do not know.
            began_at=min(issued_at, signed_in or issued_at),
            key=key.fingerprint,
        )

    def _roles(self, claims: dict[str, Any]) -> frozenset[str]:
        value: Any = claims
        for part in self._roles_path:
            value = value.get(part) if isinstance(value, dict) else None
        return frozenset(role for role in value if isinstance(role, str)) if isinstance(value, list) else frozenset()

    def _cache(self, token: str, principal: Principal) -> None:
        if self._settings.token_cache_size == 0:
            return
        self._verified[sha256(token.encode("utf-8", "surrogatepass")).digest()] = principal
        if len(self._verified) > self._settings.token_cache_size:
            self._verified.popitem(last=False)


def _is_access_token(header: dict[str, Any], claims: dict[str, Any]) -> bool:
    """Keycloak says `typ: Bearer` in the claims; RFC 9068 says `at+jwt` in the header; ID tokens carry marks of their own."""
    kind = str(header.get("typ", "JWT")).lower().removeprefix("application/")
    if kind not in ("jwt", "at+jwt"):
        return False
    if str(claims.get("typ", "Bearer")) != "Bearer" or str(claims.get("token_use", "access")) != "access":
        return False
    return "nonce" not in claims and "at_hash" not in claims and "c_hash" not in claims


def storable(text: str) -> bool:
    """Whether PostgreSQL, Redis and JSON can hold it: no NUL, no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def as_seconds(value: Any) -> float | None:
    """The Unix time in a claim, None for anything else."""
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None
