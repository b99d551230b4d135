"""Access token verification (RFC 9068, OpenID Connect): local, with cached keys; a verified token is cached until it expires."""

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

from hw_server.auth.jwks import SigningKeys
from hw_server.auth.principal import Principal
from hw_server.errors import Unauthenticated
from hw_server.observability.metrics import Metrics
from hw_server.settings import OidcSettings

MAX_TOKEN_BYTES = 8192
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
        if principal is None or time.time() >= principal.expires_at + self._settings.leeway:
            return None
        self._ok.inc()
        return principal

    async def verify(self, token: str) -> Principal:
        """The caller; raises `Unauthenticated`, with one of a bounded number of reasons."""
        try:
            principal = await self._verify(token)
        except Unauthenticated as error:
            self._attempts.labels(error.reason).inc()
            raise
        self._ok.inc()
        self._cache(token, principal)
        return principal

    async def claims(self, token: str, audience: str, required: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and claims of a token signed by the provider for `audience`; raises `Unauthenticated`."""
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
        if key.algorithm_name != header["alg"]:
            raise Unauthenticated("bad_algorithm")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[header["alg"]],
                audience=audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway,
                options={"require": required},
            )
        except PyJWTError as error:
            reason = next((word for kind, word in REASONS if isinstance(error, kind)), "malformed")
            raise Unauthenticated(reason) from None
        except (ValueError, RecursionError, TypeError):
            raise Unauthenticated("malformed") from None
        return header, claims

    async def _verify(self, token: str) -> Principal:
        header, claims = await self.claims(token, self._settings.audience, ["exp", "iat", "sub"])
        if not _is_access_token(header, claims):
            raise Unauthenticated("not_an_access_token")
        sub = claims["sub"]
        session_id = claims.get("sid") or claims.get("jti")
        if not isinstance(sub, str) or not sub or not isinstance(session_id, str) or not session_id:
            raise Unauthenticated("missing_claim")
        if "\x00" in f"{sub}{session_id}{claims.get(self._settings.username_claim)}":
            raise Unauthenticated("malformed")
        username = claims.get(self._settings.username_claim)
        return Principal(
            sub=sub[:255],
            username=(username if isinstance(username, str) and username else sub)[:255],
            roles=self._roles(claims),
            session_id=session_id[:255],
            client_id=str(claims.get("azp") or claims.get("client_id") or "")[:255],
            issued_at=float(claims["iat"]),
            expires_at=float(claims["exp"]),
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
