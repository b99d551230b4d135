"""The provider's signing keys (JWKS): fetched when first needed, and again for an unknown key, with a cooldown after a fetch that
did not bring it."""

import asyncio
import time
from typing import Any

import httpx
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from hw_server.errors import Unavailable
from hw_server.settings import OidcSettings

log = structlog.get_logger()

ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}


class SigningKeys:
    """Keys fetched before keep working while the provider is down. `discovery` is its OpenID configuration as last fetched."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._base = (settings.internal_url or settings.issuer).rstrip("/")
        self._keys: dict[str, PyJWK] = {}
        self._lock = asyncio.Lock()
        self._next_fetch = 0.0
        self.discovery: dict[str, Any] | None = None
        self._http = httpx.AsyncClient(timeout=settings.timeout, follow_redirects=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def find(self, kid: str) -> PyJWK | None:
        """The key with this id, None when the provider has none; raises `Unavailable` when no key was ever fetched."""
        key = self._keys.get(kid)
        if key is None:
            await self._fetch_unless_known(kid)
            key = self._keys.get(kid)
        if key is None and not self._keys:
            raise Unavailable("the identity provider is out of reach")
        return key

    async def discover(self) -> dict[str, Any]:
        """The provider's OpenID configuration, fetched now; raises `Unavailable` when it does not answer."""
        self.discovery = await self._get(f"{self._base}/.well-known/openid-configuration")
        return self.discovery

    async def _fetch_unless_known(self, kid: str) -> None:
        async with self._lock:
            if kid in self._keys or time.monotonic() < self._next_fetch:
                return
            try:
                self._keys = await self._fetch()
            except Unavailable as error:
                log.warning("jwks_fetch_failed", error=error.detail)
            # A fetch that brings the key starts no cooldown: made-up key ids cannot delay a real new key.
            if kid in self._keys:
                return
            # Without any key every request is refused: retry after a second.
            self._next_fetch = time.monotonic() + (self._settings.jwks_cooldown if self._keys else 1.0)

    async def _fetch(self) -> dict[str, PyJWK]:
        discovered = await self.discover()
        if discovered.get("issuer") != self._settings.issuer:
            raise Unavailable(f"the provider calls itself {discovered.get('issuer')!r}, not oidc.issuer")
        # The document names public addresses; this server may reach the provider only at `oidc.internal_url`.
        address = str(discovered.get("jwks_uri", "")).replace(self._settings.issuer, self._base, 1)
        keys = {}
        for entry in (await self._get(address)).get("keys", []):
            if entry.get("use", "sig") != "sig" or entry.get("kty") not in ALGORITHMS or "kid" not in entry:
                continue
            if entry.get("alg", ALGORITHMS[entry["kty"]]) != ALGORITHMS[entry["kty"]]:
                continue
            try:
                keys[entry["kid"]] = PyJWK(entry, ALGORITHMS[entry["kty"]])
            except PyJWTError:
                log.warning("jwks_key_unusable", kid=entry["kid"])
        log.info("jwks_fetched", keys=len(keys))
        return keys

    async def _get(self, address: str) -> dict[str, Any]:
        try:
            response = await self._http.get(address)
            response.raise_for_status()
            document = response.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise Unavailable(f"the identity provider did not answer: {type(error).__name__}") from error
        if not isinstance(document, dict):
            raise Unavailable("the identity provider's answer is not an object")
        return document
