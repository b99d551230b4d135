"""The provider's signing keys (JWKS): fetched when first needed, again at a maximum age, and for an unknown key, with a cooldown
after a fetch that did not bring it."""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from hw_server.errors import Unavailable
from hw_server.settings import OidcSettings

log = structlog.get_logger()

ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}
RETRY_INTERVAL = 5.0  # seconds between two attempts to fetch keys that are past their maximum age
LOOK_INTERVAL = 1.0  # seconds between two checks whether the keys are to be fetched again
MATERIAL = ("kid", "kty", "alg", "crv", "n", "e", "x", "y")  # the members of a JWK that its fingerprint covers


@dataclass(frozen=True, slots=True)
class SigningKey:
    """`fingerprint` differs from that of another key published under the same `kid`."""

    jwk: PyJWK
    fingerprint: str


class SigningKeys:
    """A supervised service. The set is fetched again once it is `oidc.jwks_max_age` old; a provider out of reach keeps the old
    one, up to `oidc.jwks_max_stale`. `listeners` are told the fingerprints of keys that the provider has withdrawn;
    `discovery` is its OpenID configuration as last fetched."""

    name = "signing-keys"

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._base = (settings.internal_url or settings.issuer).rstrip("/")
        self._keys: dict[str, SigningKey] = {}
        self._trusted: frozenset[str] = frozenset()
        self._fetched = 0.0  # time.monotonic() of the last set
        self._out_of_reach = False  # whether the last fetch failed
        self._lock = asyncio.Lock()
        self._next_fetch = 0.0
        self.discovery: dict[str, Any] | None = None
        self.listeners: list[Callable[[Collection[str]], None]] = []
        self._http = httpx.AsyncClient(timeout=settings.timeout, follow_redirects=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def find(self, kid: str) -> SigningKey | None:
        """The key with this id, None when the provider has none; raises `Unavailable` where that cannot be told."""
        key = self._find(kid)
        if key is None:
            await self._fetch_unless_known(kid)
            key = self._find(kid)
        if key is None and (self._out_of_reach or not self._keys):
            raise Unavailable("the identity provider is out of reach")
        return key

    def trusts(self, fingerprint: str) -> bool:
        """Whether a token that this key verified still counts."""
        return fingerprint in self._trusted and not self._stale

    def withdrawn(self, fingerprint: str) -> bool:
        """Whether the key is missing from the latest JWKS."""
        return fingerprint not in self._trusted

    async def discover(self) -> dict[str, Any]:
        """The provider's OpenID configuration, fetched now; raises `Unavailable` when it does not answer."""
        self.discovery = await self._get(f"{self._base}/.well-known/openid-configuration")
        return self.discovery

    async def run(self) -> None:
        """Fetches the set again in the background, so that no request waits for it."""
        while True:
            left = self._fetched + self._settings.jwks_max_age - time.monotonic() if self._keys else LOOK_INTERVAL
            if left > 0:
                await asyncio.sleep(min(left, LOOK_INTERVAL))
                continue
            async with self._lock:
                fetched = await self._refresh()
            if not fetched:
                await asyncio.sleep(RETRY_INTERVAL)

    @property
    def _stale(self) -> bool:
        return time.monotonic() - self._fetched > self._settings.jwks_max_stale

    def _find(self, kid: str) -> SigningKey | None:
        return None if self._stale else self._keys.get(kid)

    async def _fetch_unless_known(self, kid: str) -> None:
        async with self._lock:
            if self._find(kid) is not None or time.monotonic() < self._next_fetch:
                return
            await self._refresh()
            # A fetch that brings the key starts no cooldown: made-up key ids cannot delay a real new key.
            if kid in self._keys:
                return
            # After a failed fetch the cooldown is at most 1 s: clients are told to try again then.
            soon = self._out_of_reach or not self._keys
            self._next_fetch = time.monotonic() + min(self._settings.jwks_cooldown, 1.0 if soon else float("inf"))

    async def _refresh(self) -> bool:
        """Replaces the set; keeps it where the provider does not answer."""
        try:
            keys = await self._fetch()
        except Unavailable as error:
            self._out_of_reach = True
            log.warning("jwks_fetch_failed", error=error.detail)
            return False
        trusted = frozenset(key.fingerprint for key in keys.values())
        withdrawn = self._trusted - trusted
        self._keys, self._trusted = keys, trusted
        self._fetched, self._out_of_reach = time.monotonic(), False
        if withdrawn:
            log.info("jwks_keys_withdrawn", keys=len(withdrawn))
            for listener in self.listeners:
                listener(withdrawn)
        return True

    async def _fetch(self) -> dict[str, SigningKey]:
        discovered = await self.discover()
        if discovered.get("issuer") != self._settings.issuer:
            raise Unavailable(f"the provider calls itself {discovered.get('issuer')!r}, not oidc.issuer")
        # The document names public addresses; this server may reach the provider only at `oidc.internal_url`.
        address = str(discovered.get("jwks_uri", "")).replace(self._settings.issuer, self._base, 1)
        entries = (await self._get(address)).get("keys")
        if not isinstance(entries, list):
            raise Unavailable("the identity provider's answer holds no list of keys")
        keys = {}
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
                continue
            algorithm = ALGORITHMS.get(str(entry.get("kty")))
            if algorithm is None or entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm:
                continue
            try:
                keys[entry["kid"]] = SigningKey(PyJWK(entry, algorithm), _fingerprint(entry))
            except (PyJWTError, ValueError, TypeError):
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


def _fingerprint(entry: dict[str, Any]) -> str:
    return sha256(repr([entry.get(name) for name in MATERIAL]).encode("utf-8", "surrogatepass")).hexdigest()
