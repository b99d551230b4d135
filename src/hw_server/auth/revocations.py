"""Revoked sessions, kept in Redis DB 1 and in the memory of every instance."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import structlog
from pydantic import BaseModel
from redis.exceptions import RedisError

from hw_server.auth.principal import Principal
from hw_server.errors import Unauthenticated, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.redis import AuthRedis, Keys
from hw_server.settings import OidcSettings

log = structlog.get_logger()

ROLES = "roles:"  # begins the entries of sessions whose roles became fewer
LIFETIME_OF_0_1 = 36_000  # seconds that an entry of version 0.1 counts
RETRY_INTERVAL = 0.5  # seconds before the feed is followed again
PING_INTERVAL = 1.0  # seconds between two pings on the feed
PONG_TIMEOUT = 2.5  # seconds without a message or pong after which the feed is broken
MAX_SESSIONS = 1000  # listed by id in one sign-out of a user


class SignOut(BaseModel):
    """What a sign-out of a user covers: sessions that began up to `at`; tokens issued up to `not_before`, which
    allows for the provider's clock; and the sessions known by name, as a token refreshed later does not always say when its
    session began. Times are Unix time in seconds."""

    at: float
    not_before: float
    sessions: frozenset[str] = frozenset()

    def covers(self, principal: Principal) -> bool:
        # A session that begins right after is refused for the leeway only: its later tokens are issued after `not_before`.
        return (
            principal.began_at <= self.at
            or principal.issued_at <= self.not_before
            or principal.session_id in self.sessions
        )


class Narrowed(BaseModel):
    """A newer token of a session has fewer roles: covers tokens of the same client, issued up to `issued_at` (Unix time in
    seconds), that have roles beyond `roles`."""

    client_id: str
    issued_at: float
    roles: frozenset[str]

    def covers(self, principal: Principal) -> bool:
        older = principal.client_id == self.client_id and principal.issued_at <= self.issued_at
        return older and not principal.roles <= self.roles

    def is_newer(self, other: "Narrowed | None") -> bool:
        return other is not None and self.issued_at > other.issued_at


@dataclass(frozen=True, slots=True)
class Revocation:
    """The end of one session (`session_id`), or of its tokens that `narrowed` covers, or of all sessions of a user (`sub`) that
    `sign_out` covers. It counts until `until`, Unix time in seconds, when every session it can cover has ended."""

    until: float
    session_id: str | None = None
    sub: str | None = None
    sign_out: SignOut | None = None
    narrowed: Narrowed | None = None

    def covers(self, principal: Principal) -> bool:
        if self.until <= time.time():
            return False
        if self.sign_out is not None:
            return principal.sub == self.sub and self.sign_out.covers(principal)
        return principal.session_id == self.session_id and (self.narrowed is None or self.narrowed.covers(principal))

    @property
    def reason(self) -> str:
        """Why sockets and streams that it covers are closed; with fewer roles the session continues with its newer token."""
        return "session_revoked" if self.narrowed is None else "token_expired"

    @property
    def entry(self) -> str:
        """Its member in the sorted set, whose score is `until`."""
        if self.narrowed is not None:
            return _roles_of(self.narrowed.client_id, str(self.session_id))
        return f"session:{self.session_id}" if self.session_id is not None else f"user:{self.sub}"

    @classmethod
    def parse(cls, entry: str, until: float, details: bytes | None) -> "Revocation":
        """Raises ValueError for an entry that cannot be read."""
        if not math.isfinite(until):
            raise ValueError("the end is no time")
        sub = _sub_of(entry)
        if sub is not None:
            if details is not None:
                return cls(until, sub=sub, sign_out=SignOut.model_validate_json(details))
            at = until - LIFETIME_OF_0_1  # version 0.1 stored the end only
            return cls(until, sub=sub, sign_out=SignOut(at=at, not_before=at))
        if entry.startswith(ROLES):
            narrowed = Narrowed.model_validate_json(details or b"")
            return cls(until, session_id=entry.removeprefix(ROLES).partition(":")[2], narrowed=narrowed)
        # Version 0.1 wrote `sub:<sub>` and bare session ids; its revocations outlive an upgrade.
        return cls(until, session_id=entry.removeprefix("session:"))


class Revocations:
    """A supervised service. The set is loaded, then followed by Redis' publish and subscribe. While the feed is broken Redis
    is asked per request, so that a revocation is never missed. `listeners` are told of each new one."""

    name = "revocations"

    def __init__(self, settings: OidcSettings, redis: AuthRedis, keys: Keys, metrics: Metrics) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = keys
        self._failures = metrics.service_failures.labels(self.name)
        self._entries: dict[str, Revocation] = {}
        self.following = False
        self.listeners: list[Callable[[Revocation], None]] = []

    def covering(self, principal: Principal) -> Revocation | None:
        """A known revocation that covers the caller."""
        if not self._entries:
            return None
        for entry in _entries_of(principal):
            revocation = self._entries.get(entry)
            if revocation is not None and revocation.covers(principal):
                return revocation
        return None

    async def check(self, principal: Principal) -> None:
        """Raises `Unauthenticated` for a revoked caller; asks Redis only while the feed is broken."""
        if not self.following:
            await self._fetch(principal)
        revocation = self.covering(principal) if self._entries else None
        if revocation is None:
            return
        if revocation.narrowed is not None:
            raise Unauthenticated("superseded", "a newer token of this session has fewer roles; use that one")
        raise Unauthenticated("revoked", "the session has ended; sign in again")

    async def _fetch(self, principal: Principal) -> None:
        entries = _entries_of(principal)

        async def read(client: Any) -> None:
            scores = await client.zmscore(self._keys.revoked, entries)
            scored = [(entry, score) for entry, score in zip(entries, scores, strict=True) if score is not None]
            await self._add_all(client, [(entry.encode(), score) for entry, score in scored])

        try:
            await self._redis.run("revocation", read)
        except Unavailable:
            if self._settings.on_redis_down == "closed":
                raise

    async def revoke_session(self, session_id: str) -> None:
        """Returns once Redis holds it; raises `Unavailable`."""
        revocation = Revocation(time.time() + self._settings.session_max_age, session_id=session_id)
        await self._redis.run("revocation", lambda client: self._publish(client, revocation))
        self._add(revocation)

    async def revoke_roles(self, newer: Principal) -> None:
        """Revokes the older tokens of a session that have roles which its newer token lacks. Returns once Redis holds it; raises
        `Unavailable`."""
        narrowed = Narrowed(client_id=newer.client_id, issued_at=newer.issued_at, roles=newer.roles)
        until = time.time() + self._settings.session_max_age
        revocation = Revocation(until, session_id=newer.session_id, narrowed=narrowed)

        key = self._keys.narrowed(revocation.entry)

        async def change(pipe: Any) -> None:
            known = await pipe.get(key)
            pipe.multi()
            if known is None or not Narrowed.model_validate_json(known).is_newer(narrowed):
                self._queue(pipe, revocation)

        # Retried where another process writes the key in between (WATCH): the newest token wins.
        await self._redis.run("revocation", lambda client: client.transaction(change, key))
        self._add(revocation)

    async def revoke_user(self, sub: str) -> frozenset[str]:
        """Revokes every session of the user that has begun. Returns once Redis holds it, with the ids that were known; raises
        `Unavailable`."""

        async def write(client: Any) -> tuple[Revocation, frozenset[str]]:
            now = time.time()
            known = await client.zrevrange(self._keys.user_sessions(sub), 0, MAX_SESSIONS - 1)
            # Sessions of an earlier sign-out are deleted, but may still be refreshed: they are listed again.
            before = _sessions_of(await client.get(self._keys.signed_out(sub)))
            names = [*(name.decode() for name in known), *before][:MAX_SESSIONS]
            covered = SignOut(at=now, not_before=now + self._settings.leeway, sessions=frozenset(names))
            revocation = Revocation(now + self._settings.session_max_age, sub=sub, sign_out=covered)
            await self._publish(client, revocation)
            return revocation, covered.sessions

        revocation, named = await self._redis.run("revocation", write)
        self._add(revocation)
        return named

    async def _publish(self, client: Any, revocation: Revocation) -> None:
        async with client.pipeline(transaction=True) as pipe:
            self._queue(pipe, revocation)
            await pipe.execute()

    def _queue(self, pipe: Any, revocation: Revocation) -> None:
        details = revocation.sign_out or revocation.narrowed
        if details is not None:
            seconds = math.ceil(self._settings.session_max_age)
            pipe.set(self._details(revocation.entry), details.model_dump_json(), ex=seconds)
        pipe.zadd(self._keys.revoked, {revocation.entry: revocation.until})
        pipe.zremrangebyscore(self._keys.revoked, "-inf", time.time())
        pipe.publish(self._keys.revocations, f"{revocation.until}|{revocation.entry}")

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
        """Subscribes before it loads: what is published in between may be delivered twice, but is never missed."""
        client = self._redis.client
        async with client.pubsub() as feed:
            await feed.subscribe(self._keys.revocations)
            if await feed.get_message(timeout=PONG_TIMEOUT) is None:
                raise TimeoutError("the subscription was not confirmed")
            await self._add_all(
                client, await client.zrangebyscore(self._keys.revoked, time.time(), "+inf", withscores=True)
            )
            self.following = True
            log.info("revocation_feed_followed", revocations=len(self._entries))
            heard = pinged = time.monotonic()
            while True:
                message = await feed.get_message(timeout=PING_INTERVAL)
                now = time.monotonic()
                if message is not None:
                    heard = now
                    if message["type"] == "message":
                        until, _, entry = message["data"].partition(b"|")
                        await self._add_all(client, [(entry, until)])
                elif now - heard > PONG_TIMEOUT:
                    # Writes succeed on a dead connection, too; only a response proves that it works.
                    raise TimeoutError("no pong")
                if now - pinged >= PING_INTERVAL:
                    pinged = now
                    await asyncio.wait_for(feed.ping(), timeout=1)
                    self._remove_expired()

    async def _add_all(self, client: Any, scored: Sequence[tuple[bytes, Any]]) -> None:
        """Adds members of the sorted set with their scores. One that cannot be read does not keep the others out."""
        keys: dict[bytes, str] = {}
        for entry, _ in scored:
            if (key := self._details(entry.decode(errors="replace"))) is not None:
                keys[entry] = key
        details = dict(zip(keys, await client.mget(list(keys.values())), strict=True)) if keys else {}
        for entry, until in scored:
            try:
                self._add(Revocation.parse(entry.decode(), float(until), details.get(entry)))
            except Exception:
                self._failures.inc()
                log.exception("revocation_failed", entry=repr(entry)[:300])

    def _details(self, entry: str) -> str | None:
        """The key of what an entry covers, None for the end of one session."""
        if entry.startswith(ROLES):
            return self._keys.narrowed(entry)
        sub = _sub_of(entry)
        return self._keys.signed_out(sub) if sub is not None else None

    def _add(self, revocation: Revocation) -> None:
        known = self._entries.get(revocation.entry)
        if known == revocation or (
            known is not None and known.narrowed and known.narrowed.is_newer(revocation.narrowed)
        ):
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
    roles = _roles_of(principal.client_id, principal.session_id)
    return [f"session:{principal.session_id}", f"user:{principal.sub}", roles]


def _roles_of(client_id: str, session_id: str) -> str:
    return f"{ROLES}{quote(client_id, safe='')}:{session_id}"


def _sub_of(entry: str) -> str | None:
    """The user whose sessions an entry ends, None for the entry of one session."""
    kind, _, name = entry.partition(":")
    return name if kind in ("user", "sub") else None


def _sessions_of(sign_out: bytes | None) -> frozenset[str]:
    try:
        return SignOut.model_validate_json(sign_out or b"").sessions
    except ValueError:
        return frozenset()
