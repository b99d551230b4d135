"""Sessions and revocation, kept in Redis DB 1. A session is the provider's `sid`, or the token's `jti` where it has none."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import structlog
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from hw_server.auth.principal import Principal
from hw_server.errors import Unauthenticated, Unavailable
from hw_server.redis import Keys, RedisClient
from hw_server.settings import OidcSettings

log = structlog.get_logger()

SESSION_LIFETIME = 36_000  # seconds; Keycloak's default for the longest session
TOUCH_INTERVAL = 30.0  # seconds between two `last_seen` of one session
PENDING, TOUCHED = 10_000, 50_000  # sessions held in memory at most: to be written, and written lately
LISTED = 200  # sessions of one user at most


class Session(BaseModel):
    id: str
    sub: str
    username: str
    client_id: str
    client_ip: str | None = None
    user_agent: str | None = None
    started_at: float = Field(description="Unix time, seconds.")
    last_seen_at: float = Field(description="Unix time, seconds.")
    expires_at: float = Field(description="Unix time when the last token seen expires, seconds.")
    current: bool = Field(False, description="Whether this request belongs to it.")


class Revocations:
    """The set of revoked sessions, in memory on every instance: loaded, then followed. While the feed is broken
    Redis is asked per request, so that a revocation is never missed. A supervised service."""

    name = "revocations"

    def __init__(self, settings: OidcSettings, redis: RedisClient, keys: Keys) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = keys
        self._entries: dict[str, float] = {}
        self.following = False
        self.listeners: list[Callable[[str], None]] = []

    def contains(self, principal: Principal) -> bool:
        if not self._entries:
            return False
        return self._hit(self._entries.get(principal.session_id)) or self._covers_user(principal)

    async def check(self, principal: Principal) -> None:
        """Raises `Unauthenticated` for a revoked caller; asks Redis only while the feed is broken."""
        if not self.following:
            await self._ask(principal)
        if self._entries and self.contains(principal):
            raise Unauthenticated("revoked", "the session has ended; sign in again")

    def _covers_user(self, principal: Principal) -> bool:
        """`sub:<sub>` ends every session of a user that began before it."""
        until = self._entries.get(f"sub:{principal.sub}")
        return self._hit(until) and principal.issued_at <= (until or 0) - SESSION_LIFETIME

    @staticmethod
    def _hit(until: float | None) -> bool:
        return until is not None and until > time.time()

    async def _ask(self, principal: Principal) -> None:
        entries = [principal.session_id, f"sub:{principal.sub}"]
        try:
            scores = await self._redis.run("revocation", lambda client: client.zmscore(self._keys.revoked, entries))
        except Unavailable:
            if self._settings.on_redis_down == "closed":
                raise
            return
        for entry, score in zip(entries, scores, strict=True):
            if score is not None:
                self._add(entry, float(score))

    async def add(self, entry: str, now: float | None = None) -> None:
        """Revokes a session id or `sub:<sub>` everywhere; returns once Redis holds it."""
        until = (now or time.time()) + SESSION_LIFETIME

        async def write(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.zadd(self._keys.revoked, {entry: until})
                pipe.zremrangebyscore(self._keys.revoked, "-inf", time.time())
                pipe.publish(self._keys.revocations, f"{until}|{entry}")
                await pipe.execute()

        await self._redis.run("revocation", write)
        self._add(entry, until)

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
            except (RedisError, OSError, TimeoutError) as error:
                if self.following:
                    log.warning("revocation_feed_broken", error=type(error).__name__)
                self.following = False
                await asyncio.sleep(0.5)

    async def drain(self) -> None:
        return None

    async def _follow(self) -> None:
        """Subscribes first and loads after, so that nothing falls between."""
        async with self._redis.client.pubsub() as feed:
            await feed.subscribe(self._keys.revocations)
            loaded = await self._redis.client.zrangebyscore(self._keys.revoked, time.time(), "+inf", withscores=True)
            for entry, until in loaded:
                self._add(entry.decode(), float(until))
            self.following = True
            quiet = 0
            while True:
                message = await feed.get_message(ignore_subscribe_messages=True, timeout=1.0)
                if message is not None and message["type"] == "message":
                    until_text, _, entry_text = message["data"].decode().partition("|")
                    self._add(entry_text, float(until_text))
                    continue
                quiet += 1
                if quiet % 2 == 0:
                    # A dead peer shows only when written to; the answer is skipped as a non-message.
                    await asyncio.wait_for(feed.ping(), timeout=1)
                    await asyncio.wait_for(self._redis.client.ping(), timeout=1)
                    self._forget()

    def _add(self, entry: str, until: float) -> None:
        if self._entries.get(entry) == until:
            return
        self._entries[entry] = until
        for listener in self.listeners:
            listener(entry)

    def _forget(self) -> None:
        now = time.time()
        for entry in [entry for entry, until in self._entries.items() if until <= now]:
            del self._entries[entry]


class SessionStore:
    """What is known of signed-in sessions. Writing is best effort: a request never fails because of it."""

    def __init__(self, redis: RedisClient, keys: Keys, revocations: Revocations) -> None:
        self._redis = redis
        self._keys = keys
        self._revocations = revocations
        self._touched: dict[str, float] = {}
        self._pending: dict[str, tuple[Principal, str | None, str | None]] = {}
        self.name = "sessions"

    def touch(self, principal: Principal, client_ip: str | None, user_agent: str | None) -> None:
        """Notes that a session was seen; written in the background, at most every `TOUCH_INTERVAL` per session."""
        now = time.monotonic()
        if now - self._touched.get(principal.session_id, -TOUCH_INTERVAL) < TOUCH_INTERVAL:
            return
        if len(self._pending) >= PENDING:
            return  # the next request of this session tries again
        if len(self._touched) >= TOUCHED:
            self._touched.clear()
        self._touched[principal.session_id] = now
        self._pending[principal.session_id] = (principal, client_ip, user_agent)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            await self.drain()

    async def drain(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, {}

        async def write(client: Any) -> None:
            async with client.pipeline(transaction=False) as pipe:
                for principal, client_ip, user_agent in pending.values():
                    # One that was revoked meanwhile must not come back.
                    if not self._revocations.contains(principal):
                        self._write(pipe, principal, client_ip, user_agent)
                await pipe.execute()

        try:
            await self._redis.run("sessions", write)
        except Unavailable:
            for session_id in pending:
                self._touched.pop(session_id, None)

    def _write(self, pipe: Any, principal: Principal, client_ip: str | None, user_agent: str | None) -> None:
        key, mine = self._keys.session(principal.session_id), self._keys.user_sessions(principal.sub)
        now = time.time()
        fields = {
            "sub": principal.sub,
            "username": principal.username,
            "client_id": principal.client_id,
            "client_ip": client_ip or "",
            "user_agent": (user_agent or "")[:300],
            "last_seen_at": now,
            "expires_at": principal.expires_at,
        }
        pipe.hset(key, mapping=fields)
        pipe.hsetnx(key, "started_at", now)
        pipe.expire(key, SESSION_LIFETIME)
        pipe.zadd(mine, {principal.session_id: now + SESSION_LIFETIME})
        pipe.zremrangebyscore(mine, "-inf", now)
        pipe.expire(mine, SESSION_LIFETIME)

    async def of_user(self, sub: str) -> list[Session]:
        """Sessions of a user that have not ended, newest first; `Unavailable` without Redis."""

        async def read(client: Any) -> list[Session | None]:
            found = await client.zrevrange(self._keys.user_sessions(sub), 0, LISTED - 1)
            ids = [item.decode() for item in found]
            async with client.pipeline(transaction=False) as pipe:
                for session_id in ids:
                    pipe.hgetall(self._keys.session(session_id))
                return list(map(_session, ids, await pipe.execute()))

        return [session for session in await self._redis.run("sessions", read) if session is not None]

    async def everybody(self) -> AsyncIterator[Session]:
        """All sessions, by looking through the whole database: for operators, not for requests."""
        start = self._keys.session("")
        keys = await self._redis.run("sessions", lambda client: _all(client.scan_iter(f"{start}*", count=500)))
        for key in keys:
            session = await self.get(key.decode().removeprefix(start))
            if session is not None:
                yield session

    async def get(self, session_id: str) -> Session | None:
        fields = await self._redis.run("sessions", lambda client: client.hgetall(self._keys.session(session_id)))
        return _session(session_id, fields)

    async def revoke(self, session_id: str) -> None:
        """Ends a session on every instance."""
        await self._revocations.add(session_id)
        session = await self.get(session_id)

        async def forget(client: Any) -> None:
            await client.delete(self._keys.session(session_id))
            if session is not None:
                await client.zrem(self._keys.user_sessions(session.sub), session_id)

        await self._redis.run("sessions", forget)

    async def revoke_user(self, sub: str) -> None:
        """Ends every session of a user that has begun."""
        await self._revocations.add(f"sub:{sub}")

        async def forget(client: Any) -> None:
            ids: Iterable[bytes] = await client.zrange(self._keys.user_sessions(sub), 0, -1)
            await client.delete(self._keys.user_sessions(sub), *(self._keys.session(item.decode()) for item in ids))

        await self._redis.run("sessions", forget)

    async def used(self, jti: str) -> bool:
        """Whether a logout token was used before."""
        key = self._keys.logout_token(jti)
        return bool(await self._redis.run("sessions", lambda client: client.exists(key)))

    async def mark_used(self, jti: str, seconds: int) -> None:
        key = self._keys.logout_token(jti)
        await self._redis.run("sessions", lambda client: client.set(key, 1, ex=seconds))


async def _all(keys: AsyncIterator[bytes]) -> list[bytes]:
    return [key async for key in keys]


def _session(session_id: str, fields: dict[bytes, bytes]) -> Session | None:
    """The session of a Redis hash, None for one that has ended."""
    if not fields:
        return None
    return Session(id=session_id, **{name.decode(): value.decode() or None for name, value in fields.items()})
