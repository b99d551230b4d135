"""Signed-in sessions, kept in Redis DB 1. A session is the provider's `sid`, or the token's `jti` where it
has none."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import structlog
from pydantic import BaseModel, Field, ValidationError

from hw_server.auth.principal import Principal
from hw_server.auth.revocations import Revocations
from hw_server.errors import Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.redis import AuthRedis, Keys
from hw_server.settings import OidcSettings

log = structlog.get_logger()

WRITE_INTERVAL = 0.1  # seconds between two writes of pending sessions
TOUCH_INTERVAL = 30.0  # seconds between two writes of one session's `last_seen_at`
MAX_PENDING, MAX_TOUCHED = 10_000, 50_000  # sessions in memory at most: to be written, and written lately
MAX_LISTED = 200  # sessions of one user
MAX_USER_AGENT = 300  # characters
OPTIONAL = ("client_ip", "user_agent")  # stored as empty text where unknown


Pending = tuple[Principal, str | None, str | None]  # with the client's address and its user agent


class Session(BaseModel):
    """A signed-in session: the provider's `sid`, or the token's `jti` where it has none. `client_ip` and `user_agent` are those
    of the request last recorded."""

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


class SessionStore:
    """A supervised service. Writing is best effort: a request never fails because of it. Reading and revoking raise
    `Unavailable` without Redis."""

    name = "sessions"

    def __init__(
        self, settings: OidcSettings, redis: AuthRedis, keys: Keys, revocations: Revocations, metrics: Metrics
    ) -> None:
        self._lifetime = math.ceil(settings.session_max_age)
        self._redis = redis
        self._keys = keys
        self._failures = metrics.service_failures.labels(self.name)
        self._revocations = revocations
        self._touched: dict[str, float] = {}
        self._pending: dict[str, Pending] = {}
        self._written: list[Principal] = []  # the last ones

    def touch(self, principal: Principal, client_ip: str | None, user_agent: str | None) -> None:
        """Notes that a session was seen; written in the background, at most every `TOUCH_INTERVAL` per session."""
        now = time.monotonic()
        if now - self._touched.get(principal.session_id, -TOUCH_INTERVAL) < TOUCH_INTERVAL:
            return
        if len(self._pending) >= MAX_PENDING:
            return  # the next request of this session tries again
        if len(self._touched) >= MAX_TOUCHED:
            self._touched.clear()
        self._touched[principal.session_id] = now
        self._pending[principal.session_id] = (principal, client_ip, user_agent)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(WRITE_INTERVAL)
            await self.drain()

    async def drain(self) -> None:
        """Writes the pending sessions."""
        if not self._pending and not self._written:
            return
        pending, self._pending = self._pending, {}
        written, self._written = self._written, []
        late, sessions = [], []
        for item in pending.values():
            # A session that was revoked meanwhile must not be written again.
            revocation = self._revocations.covering(item[0])
            if revocation is None:
                sessions.append(item)
            elif revocation.sub is not None:
                late.append(item[0].session_id)
        try:
            await self._end_revoked(written)  # the revocation message may arrive after the session was written
            if sessions:
                await self._redis.run("sessions", lambda client: self._write_all(client, sessions))
            # A sign-out of the user did not list these sessions, so a refreshed token would be accepted: revoke each by id.
            for session_id in late:
                await self._revocations.revoke_session(session_id)
            self._written = await self._end_revoked([principal for principal, *_ in sessions])
        except Unavailable:
            for session_id in pending:
                self._touched.pop(session_id, None)

    async def _end_revoked(self, written: list[Principal]) -> list[Principal]:
        """Revokes again the sessions that ended while they were written, as the write restored them; returns the others."""
        ended = []
        for principal in written:
            revocation = self._revocations.covering(principal)
            if revocation is not None and revocation.narrowed is None:
                ended.append(principal)
        for principal in ended:
            await self.revoke(principal.session_id)
        return [principal for principal in written if principal not in ended] if ended else written

    async def _write_all(self, client: Any, sessions: list[Pending]) -> None:
        """One session that cannot be written does not keep the others out."""
        owners: list[str] = []
        try:
            async with client.pipeline(transaction=False) as pipe:
                for principal, client_ip, user_agent in sessions:
                    self._write(pipe, principal, client_ip, user_agent)
                    owners += [principal.session_id] * (len(pipe) - len(owners))
                results = await pipe.execute(raise_on_error=False) if owners else []
        except ValueError as error:
            # Nothing was sent: one of them cannot be encoded.
            if len(sessions) == 1:
                self._fail(owners[0], error)
            else:
                for session in sessions:
                    await self._write_all(client, [session])
            return
        failed = {name: error for name, error in zip(owners, results, strict=True) if isinstance(error, Exception)}
        for session_id, failure in failed.items():
            self._fail(session_id, failure)

    def _fail(self, session_id: str, error: Exception) -> None:
        self._failures.inc()
        log.error("session_not_written", session=session_id, error=repr(error)[:200])

    def _write(self, pipe: Any, principal: Principal, client_ip: str | None, user_agent: str | None) -> None:
        key, of_user = self._keys.session(principal.session_id), self._keys.user_sessions(principal.sub)
        now = time.time()
        fields = {
            "sub": principal.sub,
            "username": principal.username,
            "client_id": principal.client_id,
            "client_ip": client_ip or "",
            "user_agent": (user_agent or "")[:MAX_USER_AGENT],
            "last_seen_at": now,
            "expires_at": principal.expires_at,
        }
        pipe.hset(key, mapping=fields)
        pipe.hsetnx(key, "started_at", now)
        pipe.expire(key, self._lifetime)
        pipe.zadd(of_user, {principal.session_id: now + self._lifetime})
        pipe.zremrangebyscore(of_user, "-inf", now)
        pipe.expire(of_user, self._lifetime)

    async def of_user(self, sub: str) -> list[Session]:
        """Sessions of a user that have not ended, newest first, at most `MAX_LISTED`."""

        async def read(client: Any) -> list[Session | None]:
            members = await client.zrevrange(self._keys.user_sessions(sub), 0, MAX_LISTED - 1)
            ids = [member.decode() for member in members]
            async with client.pipeline(transaction=False) as pipe:
                for session_id in ids:
                    pipe.hgetall(self._keys.session(session_id))
                entries = await pipe.execute(raise_on_error=False)
            # One that cannot be read does not hide the others.
            return [_session(name, item) for name, item in zip(ids, entries, strict=True) if isinstance(item, dict)]

        return [session for session in await self._redis.run("sessions", read) if session is not None]

    async def scan(self) -> AsyncIterator[Session]:
        """All sessions. Scans the whole database: for operators, not for requests."""
        start = self._keys.session("")
        keys = await self._redis.run("sessions", lambda client: _collect(client.scan_iter(f"{start}*", count=500)))
        for key in keys:
            session = await self.get(key.decode().removeprefix(start))
            if session is not None:
                yield session

    async def get(self, session_id: str) -> Session | None:
        fields = await self._redis.run("sessions", lambda client: client.hgetall(self._keys.session(session_id)))
        return _session(session_id, fields)

    async def revoke(self, session_id: str) -> None:
        """Ends a session on every instance."""
        await self._revocations.revoke_session(session_id)
        session = await self.get(session_id)

        async def delete(client: Any) -> None:
            await client.delete(self._keys.session(session_id))
            if session is not None:
                await client.zrem(self._keys.user_sessions(session.sub), session_id)

        await self._redis.run("sessions", delete)

    async def revoke_user(self, sub: str) -> None:
        """Ends every session of a user that has begun."""
        named = await self._revocations.revoke_user(sub)

        async def delete(client: Any) -> list[str]:
            ids = [item.decode() for item in await client.zrange(self._keys.user_sessions(sub), 0, -1)]
            await client.delete(self._keys.user_sessions(sub), *map(self._keys.session, ids))
            return ids

        # Written after the sign-out listed its sessions, so a refreshed token would be accepted: revoke each by id.
        unnamed = [name for name in await self._redis.run("sessions", delete) if name not in named]
        for session_id in unnamed[:MAX_LISTED]:
            await self._revocations.revoke_session(session_id)

    async def is_replayed(self, jti: str) -> bool:
        """Whether a logout token was accepted before."""
        key = self._keys.logout_token(jti)
        return bool(await self._redis.run("sessions", lambda client: client.exists(key)))

    async def mark_replayed(self, jti: str, seconds: int) -> None:
        """Stores the `jti` of a logout token, which makes it a replay for `seconds`."""
        key = self._keys.logout_token(jti)
        await self._redis.run("sessions", lambda client: client.set(key, 1, ex=seconds))


async def _collect(keys: AsyncIterator[bytes]) -> list[bytes]:
    return [key async for key in keys]


def _session(session_id: str, fields: dict[bytes, bytes]) -> Session | None:
    """The session of a Redis hash, None for one that has ended."""
    if not fields:
        return None
    try:
        texts = {name.decode(): value.decode() for name, value in fields.items()}
        return Session(id=session_id, **{name: value for name, value in texts.items() if value or name not in OPTIONAL})
    except ValidationError as error:
        log.warning("session_malformed", session=session_id, fields=[str(item["loc"][0]) for item in error.errors()])
        return None
    except UnicodeDecodeError as error:
        log.warning("session_malformed", session=session_id, error=error.reason)
        return None
