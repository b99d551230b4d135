"""Identity on bad days: what was refused stays refused, and what one item breaks, breaks for itself alone."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from hw_server.embedded import Stack
from hw_server.observability.metrics import Metrics
from hw_server.ratelimit import RateLimiter
from hw_server.redis import CacheRedis, Keys
from hw_server.settings import load
from tests.conftest import Running, Serve, free_port, until
from tests.provider import Provider
from tests.proxy import Proxy
from tests.test_sessions import PATH, feed_breaks, listed
from tests.test_settings import hw

FAILURES = 'service_item_failures_total{{service="{}"}}'


@pytest.fixture
async def sessions(stack: Stack) -> AsyncIterator[Any]:
    """The database of sessions."""
    async with aioredis.from_url(stack.environment()["HW_REDIS__URL"], db=1) as client:
        yield client


async def status(running: Running, token: str) -> int:
    async with running.client(token) as client:
        return (await client.get("/api/me")).status_code


async def failures(running: Running, service: str) -> float:
    return (await running.metrics()).get(FAILURES.format(service), 0.0)


# One item


async def test_a_token_of_no_client_has_a_session(guarded: Running, provider: Provider, sessions: Any) -> None:
    sid, sub = uuid.uuid4().hex, uuid.uuid4().hex
    async with guarded.client(provider.token(sid=sid, sub=sub, azp=None)) as client:
        assert (await client.get("/api/me")).json()["client_id"] == ""
        await until(lambda: listed(client, sid))
        for malformed in ("soon", b"\xff"):
            await sessions.hset(f"hw:session:{sid}", "started_at", malformed)
            assert (await client.get("/api/sessions")).json()["items"] == []
        assert (await client.delete(f"/api/sessions/{sid}")).status_code in (204, 404)


async def test_a_session_that_cannot_be_written_spares_the_others(
    guarded: Running, provider: Provider, sessions: Any
) -> None:
    bad, good = uuid.uuid4().hex, uuid.uuid4().hex
    before = await failures(guarded, "sessions")
    await sessions.set(f"hw:session:{bad}", "no hash")
    assert await status(guarded, provider.token(sid=bad)) == 200
    async with guarded.client(provider.token(sid=good)) as client:
        await until(lambda: listed(client, good))
        await sessions.delete(f"hw:session:{bad}")
    assert await failures(guarded, "sessions") > before
    assert (await guarded.metrics()).get('redis_errors_total{purpose="sessions"}', 0) == 0


@pytest.mark.parametrize(
    "message", [b"", b"soon|session:a", b"nan|session:a", b"1e999|user:a", b"1\xff|\xff", b"1e9|user:\xff"]
)
async def test_a_malformed_revocation_spares_the_others(
    guarded: Running, provider: Provider, sessions: Any, message: bytes
) -> None:
    before, broken, token = await failures(guarded, "revocations"), feed_breaks(guarded), provider.token()
    await sessions.publish("hw:revocations", message)
    async with guarded.client(token) as client:
        session = (await client.get("/api/me")).json()["session_id"]
        await sessions.publish("hw:revocations", f"{time.time() + 60}|session:{session}")
        await until(lambda: refused(guarded, token))
    assert await failures(guarded, "revocations") == before + 1
    assert feed_breaks(guarded) == broken


async def refused(running: Running, token: str) -> bool:
    return await status(running, token) == 401


async def test_a_batch_of_decisions_fails_alone(stack: Stack) -> None:
    """A key that cannot be encoded fails those that are decided with it, which then count without Redis; nobody hangs."""
    settings, metrics = load(stack.environment()), Metrics()
    client = CacheRedis(settings.redis, metrics)
    limiter = RateLimiter(settings.ratelimit, client, Keys(f"{uuid.uuid4().hex}:"), metrics)
    async with asyncio.timeout(10):
        first = await asyncio.gather(limiter.check("http", "\ud800"), limiter.check("http", "a"))
        later = await limiter.check("http", "a")
    await client.close()
    assert [decision.remaining for decision in (*first, later)] == [5999, 5999, 5999]
    assert b'service_item_failures_total{service="ratelimit"} 1.0' in metrics.expose()


# Keys


@pytest.fixture
def own() -> Iterator[Provider]:
    with Provider.running() as provider:
        yield provider


async def test_a_withdrawn_key_stops_counting(serve: Serve, own: Provider) -> None:
    withdrawn, kept = own.token("rsa"), own.token("ec")
    with serve(**own.settings(), HW_OIDC__JWKS_MAX_AGE="1") as running:
        assert [await status(running, token) for token in (withdrawn, kept)] == [200, 200]
        async with running.socket(withdrawn) as closed, running.socket(kept) as open_:
            own.published = ["ec"]
            await until(lambda: refused(running, withdrawn))
            assert await closed.closed() == (4401, "unauthenticated")
            assert (await open_.call("me.get"))["result"]["username"] == "ann"
        assert await status(running, kept) == 200


async def test_another_key_of_the_same_id_is_another_key(serve: Serve, own: Provider) -> None:
    old = own.token()
    with serve(**own.settings(), HW_OIDC__JWKS_MAX_AGE="1") as running:
        assert await status(running, old) == 200
        own.keys["rsa"] = own.new_key()
        await until(lambda: refused(running, old))
        assert await status(running, own.token()) == 200


async def test_keys_outlive_the_provider_up_to_a_limit(serve: Serve, own: Provider) -> None:
    ages = {"HW_OIDC__JWKS_MAX_AGE": "1", "HW_OIDC__JWKS_MAX_STALE": "8"}
    token = own.token()
    with serve(**own.settings(), **ages) as running:
        async with running.socket(token) as socket:
            own.broken = True
            await until(lambda: [line for line in running.log() if line["event"] == "jwks_fetch_failed"])
            assert [await status(running, token), await status(running, own.token())] == [200, 200]

            async def unknown() -> bool:
                return await status(running, token) == 503

            await until(unknown)
            assert (await socket.call("me.get"))["error"]["data"]["code"] == "unavailable"
            own.broken = False
            await until(lambda: accepted(running, token))
            assert (await socket.call("me.get"))["result"]["username"] == "ann"


async def accepted(running: Running, token: str) -> bool:
    return await status(running, token) == 200


# Signed out everywhere


async def end_by_command(running: Running, sub: str) -> None:
    result = await asyncio.to_thread(hw, "sessions", "end-user", sub, **running.environment)
    assert result.stdout == f"ended all sessions of {sub}\n", result.stderr


async def end_by_provider(running: Running, sub: str, provider: Provider) -> None:
    async with running.client() as client:
        token = provider.logout_token(sid=None, sub=sub)
        assert (await client.post(PATH, data={"logout_token": token})).status_code == 200


@pytest.mark.parametrize("way", ["command", "provider"])
async def test_a_refreshed_token_of_an_ended_session_is_refused(serve: Serve, provider: Provider, way: str) -> None:
    sub, sid = uuid.uuid4().hex, uuid.uuid4().hex
    with serve(**provider.settings(), HW_OIDC__LEEWAY="0") as running:
        async with running.client(provider.token(sub=sub, sid=sid)) as client:
            await until(lambda: listed(client, sid))
        await (end_by_command(running, sub) if way == "command" else end_by_provider(running, sub, provider))
        await until(lambda: accepted(running, provider.token(sub=sub)))  # another session, begun since
        assert await status(running, provider.token(sub=sub, sid=sid)) == 401
        # Once more: sessions that are known no longer stay ended.
        await end_by_provider(running, sub, provider)
        await until(lambda: accepted(running, provider.token(sub=sub)))
        assert await status(running, provider.token(sub=sub, sid=sid)) == 401
        with serve(**running.environment | {"HW_HTTP__PORT": str(free_port())}) as later:
            assert await status(later, provider.token(sub=sub, sid=sid)) == 401


async def test_a_session_nobody_had_seen_is_ended_by_its_beginning(serve: Serve, provider: Provider) -> None:
    sub, began = uuid.uuid4().hex, int(time.time()) - 60
    with serve(**provider.settings(), HW_OIDC__LEEWAY="0") as running:
        await end_by_provider(running, sub, provider)
        await until(lambda: accepted(running, provider.token(sub=sub)))
        assert await status(running, provider.token(sub=sub, auth_time=began)) == 401


async def test_a_session_that_begins_right_after_is_let_in_soon(serve: Serve, provider: Provider) -> None:
    sub, sid = uuid.uuid4().hex, uuid.uuid4().hex
    with serve(**provider.settings(), HW_OIDC__LEEWAY="3") as running:
        await end_by_provider(running, sub, provider)
        began = int(time.time()) + 1
        assert await status(running, provider.token(sub=sub, sid=sid, auth_time=began, iat=began)) == 401
        await until(lambda: accepted(running, provider.token(sub=sub, sid=sid, auth_time=began)))


async def test_the_provider_s_clock_may_be_ahead(guarded: Running, provider: Provider) -> None:
    sub = uuid.uuid4().hex
    await end_by_provider(guarded, sub, provider)
    assert await status(guarded, provider.token(sub=sub, iat=int(time.time()) + 5)) == 401


async def test_a_sign_out_lasts_as_long_as_the_longest_session(serve: Serve, provider: Provider, sessions: Any) -> None:
    sub = uuid.uuid4().hex
    with serve(**provider.settings(), HW_OIDC__SESSION_MAX_AGE="86400") as running:
        await end_by_provider(running, sub, provider)
    assert await sessions.zscore("hw:revoked", f"user:{sub}") > time.time() + 80_000
    assert await sessions.ttl(f"hw:signed-out:{sub}") > 80_000


async def test_one_entry_ends_all_sessions_of_a_user(guarded: Running, provider: Provider, sessions: Any) -> None:
    sub = uuid.uuid4().hex
    for _ in range(5):
        assert await status(guarded, provider.token(sub=sub)) == 200
    await until(lambda: known(sessions, sub, 5))
    # Sessions that end right after they were written are ended once more each; one written later shows that these are not.
    other = uuid.uuid4().hex
    assert await status(guarded, provider.token(sub=other)) == 200
    await until(lambda: known(sessions, other, 1))
    before = await sessions.zcard("hw:revoked")
    await end_by_provider(guarded, sub, provider)
    assert await sessions.zcard("hw:revoked") == before + 1


async def known(sessions: Any, sub: str, number: int) -> bool:
    return await sessions.zcard(f"hw:sessions:{sub}") == number


@pytest.mark.parametrize("kind", ["sub", "user", "session:user"])
async def test_a_session_s_id_ends_nobody_else_s(guarded: Running, provider: Provider, kind: str) -> None:
    victim = uuid.uuid4().hex
    token = provider.token(sub=victim)
    async with guarded.client(provider.token(sid=f"{kind}:{victim}")) as attacker, guarded.socket(token) as socket:
        assert (await attacker.delete(f"/api/sessions/{kind}:{victim}")).status_code == 204
        assert (await attacker.get("/api/me")).status_code == 401
        assert (await socket.call("me.get"))["result"]["sub"] == victim
    assert await status(guarded, token) == 200


# The feed and the sign-in


@contextlib.contextmanager
def behind_a_proxy(serve: Serve, stack: Stack, provider: Provider) -> Iterator[tuple[Running, Proxy]]:
    """A server that reaches Redis through a proxy."""
    with Proxy.running(stack.ports.redis) as proxy:
        address = f"redis://127.0.0.1:{proxy.port}"
        with serve(**provider.settings(), HW_REDIS__URL=address) as running:
            yield running, proxy


async def test_a_feed_that_is_swallowed_is_broken(
    serve: Serve, stack: Stack, guarded: Running, provider: Provider
) -> None:
    token = provider.token()
    with behind_a_proxy(serve, stack, provider) as (running, proxy):
        assert await status(running, token) == 200
        await until(lambda: [line for line in running.log() if line["event"] == "revocation_feed_followed"])
        proxy.swallow()
        async with guarded.client(token) as elsewhere:
            await elsewhere.delete(f"/api/sessions/{(await elsewhere.get('/api/me')).json()['session_id']}")
        await until(lambda: feed_breaks(running))
        await until(lambda: refused(running, token))


@pytest.mark.parametrize("handshake", [True, False])
async def test_a_session_ended_during_its_sign_in_is_refused(
    serve: Serve, stack: Stack, guarded: Running, provider: Provider, handshake: bool
) -> None:
    token = provider.token()
    with behind_a_proxy(serve, stack, provider) as (running, proxy):
        proxy.hold_at = b"hw:sockets:"
        signing_in = asyncio.create_task(sign_in(running, token, handshake))
        await until(proxy.held.is_set)
        async with guarded.client(token) as elsewhere:
            await elsewhere.delete(f"/api/sessions/{(await elsewhere.get('/api/me')).json()['session_id']}")
        await until(lambda: refused(running, token))
        proxy.hold_at = b""
        proxy.release.set()
        assert await signing_in in ("HTTP 401", "4401 unauthenticated", "4403 session_revoked")


async def test_a_session_ended_while_it_is_written_does_not_come_back(
    serve: Serve, stack: Stack, guarded: Running, provider: Provider, sessions: Any
) -> None:
    """And the sign-out of all its user's sessions, which did not know it, covers its next tokens."""
    sid, sub = uuid.uuid4().hex, uuid.uuid4().hex
    token = provider.token(sid=sid, sub=sub)
    with behind_a_proxy(serve, stack, provider) as (running, proxy):
        proxy.hold_at = f"hw:session:{sid}".encode()
        assert not await refused(running, token)
        await until(proxy.held.is_set)
        async with guarded.client() as client:
            logout = provider.logout_token(sid=None, sub=sub)
            await client.post(PATH, data={"logout_token": logout})
        await until(lambda: refused(running, token))
        proxy.release.set()
        await until(lambda: sessions.zscore("hw:revoked", f"session:{sid}"))

        async def gone() -> bool:
            return not await sessions.exists(f"hw:session:{sid}")

        await until(gone)


async def test_a_session_that_begins_during_the_sign_out_of_all_ends_too(
    serve: Serve, stack: Stack, guarded: Running, provider: Provider, sessions: Any
) -> None:
    """It is written after the others were named, and before they are ended."""
    sid, sub = uuid.uuid4().hex, uuid.uuid4().hex
    with behind_a_proxy(serve, stack, provider) as (running, proxy):
        await refused(running, provider.token())
        proxy.hold_at = b"MULTI"
        async with running.client() as client:
            logout = {"logout_token": provider.logout_token(sid=None, sub=sub)}
            ending = asyncio.create_task(client.post(PATH, data=logout))
            await until(proxy.held.is_set)
            assert not await refused(guarded, provider.token(sid=sid, sub=sub))
            await until(lambda: sessions.exists(f"hw:session:{sid}"))
            proxy.release.set()
            assert (await ending).status_code == 200
    assert await sessions.zscore("hw:revoked", f"session:{sid}")


async def sign_in(running: Running, token: str, handshake: bool) -> str:
    """How it ends."""
    try:
        async with running.socket(token if handshake else None) as socket:
            if not handshake:
                await socket.call("session.authenticate", token=token)
            code, reason = await socket.closed()
            return f"{code} {reason}"
    except Exception as error:
        return f"HTTP {error.response.status_code}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("keys", [[], ["ec"]])
async def test_without_the_provider_a_socket_may_try_again(
    serve: Serve, own: Provider, keys: list[str], database: Any
) -> None:
    own.published = keys
    with serve(**own.settings(), HW_OIDC__JWKS_COOLDOWN="0") as running:
        if keys:
            assert await status(running, own.token("ec")) == 200
        own.broken = True
        async with running.socket() as socket:
            answer = await socket.call("session.authenticate", token=own.token())
            assert answer["error"]["code"] == -32053
            assert await socket.closed() == (1013, "try_again_later")
        assert await sign_in(running, own.token(), True) == "HTTP 503"
        request = answer["error"]["data"]["request_id"]
        query = "SELECT outcome FROM user_actions WHERE request_id = $1"
        assert await until(lambda: database.fetchval(query, request)) == "failure"
