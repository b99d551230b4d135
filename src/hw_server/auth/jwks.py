"""The provider's signing keys: fetched when first needed, again for an unknown key, with a cooldown after a vain fetch."""

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
    """Known keys keep working while the provider is down."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._base = (settings.internal_url or settings.issuer).rstrip("/")
        self._keys: dict[str, PyJWK] = {}
        self._lock = asyncio.Lock()
        self._next_fetch = 0.0
        self.described: dict[str, Any] | None = None  # as of the last fetch; the health check fetches it all the time
        self._http = httpx.AsyncClient(timeout=settings.timeout, follow_redirects=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def find(self, kid: str) -> PyJWK | None:
        """The key, None where the provider has no such key; `Unavailable` where no key was ever fetched."""
        key = self._keys.get(kid)
        if key is None:
            await self._fetch_unless_known(kid)
            key = self._keys.get(kid)
        if key is None and not self._keys:
            raise Unavailable("the identity provider is out of reach")
        return key

    async def configuration(self) -> dict[str, Any]:
        """The provider's own description, fetched now; `Unavailable` where it does not answer."""
        self.described = await self._get(f"{self._base}/.well-known/openid-configuration")
        return self.described

    async def _fetch_unless_known(self, kid: str) -> None:
        async with self._lock:
            if kid in self._keys or time.monotonic() < self._next_fetch:
                return
            try:
                self._keys = await self._fetch()
            except Unavailable as error:
                log.warning("jwks_fetch_failed", error=error.detail)
            # A fetch that brings the key costs no cooldown: no sender of made-up keys can hold up a new real one.
            if kid in self._keys:
                return
            # Without any key every request would wait for the provider: then ask again after a second.
            self._next_fetch = time.monotonic() + (self._settings.jwks_cooldown if self._keys else 1.0)

    async def _fetch(self) -> dict[str, PyJWK]:
        discovered = await self.configuration()
        if discovered.get("issuer") != self._settings.issuer:
            raise Unavailable(f"the provider calls itself {discovered.get('issuer')!r}, not oidc.issuer")
        # The document names public addresses; this server may reach the provider only at its internal one.
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
