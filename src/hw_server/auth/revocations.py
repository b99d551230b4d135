"""Revoked sessions, kept in Redis DB 1 and in the memory of every instance."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import RedisError

from hw_server.auth.principal import Principal
from hw_server.errors import Unauthenticated, Unavailable
from hw_server.redis import AuthRedis, Keys
from hw_server.settings import OidcSettings

log = structlog.get_logger()

SESSION_LIFETIME = 36_000  # seconds; Keycloak's default for the longest session
RETRY_INTERVAL = 0.5  # seconds before the feed is followed again
PING_INTERVAL = 2  # seconds without a message before the feed is tested


@dataclass(frozen=True, slots=True)
class Revocation:
    """The end of one session (`session_id`), or of all sessions of a user (`sub`) that began before it was made. It counts
    until `until`, Unix time in seconds, when every token it can cover has expired."""

    until: float
    session_id: str | None = None
    sub: str | None = None

    def covers(self, principal: Principal) -> bool:
        if self.until <= time.time():
            return False
        if self.session_id is not None:
            return principal.session_id == self.session_id
        return principal.sub == self.sub and principal.issued_at <= self.until - SESSION_LIFETIME

    @property
    def entry(self) -> str:
        """Its member in the sorted set, whose score is `until`."""
        return f"session:{self.session_id}" if self.session_id is not None else f"user:{self.sub}"

    @classmethod
    def parse(cls, entry: str, until: float) -> "Revocation":
        kind, _, name = entry.partition(":")
        if kind in ("user", "sub"):
            return cls(until, sub=name)
        # Version 0.1 wrote `sub:<sub>` and bare session ids; its revocations outlive an upgrade.
        return cls(until, session_id=name if kind == "session" else entry)


class Revocations:
    """A supervised service. The set is loaded, then followed by Redis' publish and subscribe. While the feed is broken Redis
    is asked per request, so that a revocation is never missed. `listeners` are told of each new one."""

    name = "revocations"

    def __init__(self, settings: OidcSettings, redis: AuthRedis, keys: Keys) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = keys
        self._entries: dict[str, Revocation] = {}
        self.following = False
        self.listeners: list[Callable[[Revocation], None]] = []

    def cover(self, principal: Principal) -> bool:
        """Whether a known revocation covers the caller."""
        if not self._entries:
            return False
        revocations = (self._entries.get(entry) for entry in _entries_of(principal))
        return any(revocation.covers(principal) for revocation in revocations if revocation is not None)

    async def check(self, principal: Principal) -> None:
        """Raises `Unauthenticated` for a revoked caller; asks Redis only while the feed is broken."""
        if not self.following:
            await self._fetch(principal)
        if self._entries and self.cover(principal):
            raise Unauthenticated("revoked", "the session has ended; sign in again")

    async def _fetch(self, principal: Principal) -> None:
        entries = _entries_of(principal)
        try:
            scores = await self._redis.run("revocation", lambda client: client.zmscore(self._keys.revoked, entries))
        except Unavailable:
            if self._settings.on_redis_down == "closed":
                raise
            return
        for entry, score in zip(entries, scores, strict=True):
            if score is not None:
                self._add(Revocation.parse(entry, float(score)))

    async def revoke_session(self, session_id: str) -> None:
        """Returns once Redis holds it; raises `Unavailable`."""
        await self._publish(Revocation(time.time() + SESSION_LIFETIME, session_id=session_id))

    async def revoke_user(self, sub: str) -> None:
        """Revokes every session of the user that has begun. Returns once Redis holds it; raises `Unavailable`."""
        await self._publish(Revocation(time.time() + SESSION_LIFETIME, sub=sub))

    async def _publish(self, revocation: Revocation) -> None:
        async def write(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.zadd(self._keys.revoked, {revocation.entry: revocation.until})
                pipe.zremrangebyscore(self._keys.revoked, "-inf", time.time())
                pipe.publish(self._keys.revocations, f"{revocation.until}|{revocation.entry}")
                await pipe.execute()

        await self._redis.run("revocation", write)
        self._add(revocation)

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
            except (RedisError, OSError, TimeoutError) as error:
                if self.following:
                    log.warning("revocation_feed_broken", error=type(error).__name__)
                self.following = False
                await asyncio.sleep(RETRY_INTERVAL)

    async def _follow(self) -> None:
        """Subscribes before it loads: what is published in between arrives twice, never not at all."""
        async with self._redis.client.pubsub() as feed:
            await feed.subscribe(self._keys.revocations)
            loaded = await self._redis.client.zrangebyscore(self._keys.revoked, time.time(), "+inf", withscores=True)
            for entry, until in loaded:
                self._add(Revocation.parse(entry.decode(), float(until)))
            self.following = True
            quiet = 0
            while True:
                message = await feed.get_message(ignore_subscribe_messages=True, timeout=1.0)
                if message is not None and message["type"] == "message":
                    until_text, _, entry_text = message["data"].decode().partition("|")
                    self._add(Revocation.parse(entry_text, float(until_text)))
                    continue
                quiet += 1
                if quiet % PING_INTERVAL == 0:
                    # A dead peer is noticed only by writing to it; the pong is skipped as a non-message.
                    await asyncio.wait_for(feed.ping(), timeout=1)
                    await asyncio.wait_for(self._redis.client.ping(), timeout=1)
                    self._remove_expired()

    def _add(self, revocation: Revocation) -> None:
        if self._entries.get(revocation.entry) == revocation:
            return
        self._entries[revocation.entry] = revocation
        for listener in self.listeners:
            listener(revocation)

    def _remove_expired(self) -> None:
        now = time.time()
        for entry in [entry for entry, revocation in self._entries.items() if revocation.until <= now]:
            del self._entries[entry]


def _entries_of(principal: Principal) -> list[str]:
    """The entries that can cover a caller."""
    return [Revocation(0, session_id=principal.session_id).entry, Revocation(0, sub=principal.sub).entry]
