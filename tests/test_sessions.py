"""Sessions, revocation and the provider's back-channel logout."""

import base64
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import redis.asyncio as aioredis
import websockets

from tests.conftest import Running, Serve, until
from tests.provider import LOGOUT_EVENT, Provider

PATH = "/api/auth/backchannel-logout"


async def listed(client: httpx.AsyncClient, sid: str, **query: str) -> dict[str, Any] | None:
    sessions = (await client.get("/api/sessions", params=query)).json()["items"]
    return next((session for session in sessions if session["id"] == sid), None)


async def test_me(guarded: Running, provider: Provider) -> None:
    async with guarded.client(provider.token(sid="my-session")) as client:
        me = (await client.get("/api/me")).json()
    assert (me["sub"], me["username"], me["session_id"], me["client_id"]) == (
        "id-of-ann",
        "ann",
        "my-session",
        "hw-web",
    )


async def test_a_session_is_listed(guarded: Running, provider: Provider) -> None:
    sid = uuid.uuid4().hex
    async with guarded.client(provider.token(sid=sid)) as client:
        session = await until(lambda: listed(client, sid))
        assert (session["current"], session["client_ip"]) == (True, "127.0.0.1")
        assert (await client.get(f"/api/sessions/{sid}")).json()["user_agent"].startswith("python-httpx")


async def test_an_ended_session_is_refused_at_once(guarded: Running, provider: Provider) -> None:
    token = provider.token()
    async with guarded.client(token) as client, guarded.socket(token) as socket:
        sid = (await client.get("/api/me")).json()["session_id"]
        assert (await client.delete(f"/api/sessions/{sid}")).status_code == 204
        refused = await client.get("/api/me")
        assert (refused.status_code, "revoked" in refused.headers["www-authenticate"]) == (401, True)
        assert await socket.closed() == (4403, "session_revoked")


async def test_others_sessions_look_missing(guarded: Running, provider: Provider) -> None:
    sid = uuid.uuid4().hex
    plain = {"sub": "other", "realm_access": {"roles": []}}
    async with guarded.client(provider.token(sid=sid)) as ann, guarded.client(provider.token(**plain)) as other:
        await until(lambda: listed(ann, sid))
        assert (await other.get(f"/api/sessions/{sid}")).status_code == 404
        assert (await other.delete(f"/api/sessions/{sid}")).status_code == 404
        assert (await other.get("/api/sessions", params={"user": "id-of-ann"})).status_code == 403


async def test_an_administrator_sees_and_ends_any(guarded: Running, provider: Provider) -> None:
    sid, sub = uuid.uuid4().hex, uuid.uuid4().hex
    victim_token = provider.token(sid=sid, sub=sub)
    async with guarded.client(victim_token) as victim, guarded.client(provider.token()) as admin:
        await victim.get("/api/me")
        await until(lambda: listed(admin, sid, user=sub))
        assert (await admin.delete(f"/api/sessions/{sid}")).status_code == 204
        assert (await victim.get("/api/me")).status_code == 401
        assert await listed(admin, sid, user=sub) is None


async def test_a_revocation_reaches_other_instances(serve: Serve, guarded: Running, provider: Provider) -> None:
    token = provider.token()
    with serve(**provider.settings()) as second:
        async with guarded.client(token) as here, second.client(token) as there, second.socket(token) as socket:
            sid = (await there.get("/api/me")).json()["session_id"]
            await here.delete(f"/api/sessions/{sid}")
            assert await socket.closed() == (4403, "session_revoked")
            assert (await there.get("/api/me")).status_code == 401


async def test_a_new_instance_knows_old_revocations(serve: Serve, guarded: Running, provider: Provider) -> None:
    token = provider.token()
    async with guarded.client(token) as here:
        await here.delete(f"/api/sessions/{(await here.get('/api/me')).json()['session_id']}")
    with serve(**provider.settings()) as second:
        async with second.client(token) as there:
            assert (await there.get("/api/me")).status_code == 401


async def test_a_socket_asks_while_the_feed_is_broken(guarded: Running, provider: Provider) -> None:
    sid = uuid.uuid4().hex
    async with guarded.socket(provider.token(sid=sid)) as socket:
        assert "result" in await socket.call("me.get")
        async with feedless(guarded) as redis:
            await redis.zadd("hw:revoked", {f"session:{sid}": time.time() + 60})  # no instance is told
            with pytest.raises(websockets.ConnectionClosed):
                await socket.call("me.get")
            assert await socket.closed() == (4403, "session_revoked")


@pytest.mark.parametrize(("mode", "status"), [("open", 200), ("closed", 503)])
async def test_without_redis_the_setting_decides(serve: Serve, provider: Provider, mode: str, status: int) -> None:
    """Whether a session is trusted that nobody can be asked about."""
    settings = {"HW_REDIS__URL": "redis://127.0.0.1:1", "HW_OIDC__ON_REDIS_DOWN": mode}
    with serve(**provider.settings(), **settings) as running:
        async with running.client(provider.token()) as client:
            responses = [await client.get("/api/me") for _ in range(3)]
            assert (await client.get("/api/notes/count")).status_code == status
        async with running.socket() as socket:
            signed_in = await socket.call("session.authenticate", token=provider.token())
    assert {response.status_code for response in responses} == {status}
    assert signed_in.get("error", {}).get("code") == (-32053 if status == 503 else None)


def feed_breaks(running: Running) -> int:
    return sum(line["event"] == "revocation_feed_broken" for line in running.log())


@contextlib.asynccontextmanager
async def feedless(running: Running) -> AsyncIterator[Any]:
    """Redis, while it lets nobody subscribe, and the server has noticed; gives a client of the database of sessions."""
    before = feed_breaks(running)
    async with aioredis.from_url(running.environment["HW_REDIS__URL"], db=1) as client:
        await client.execute_command("ACL", "SETUSER", "default", "-subscribe")
        try:
            await client.client_kill_filter(_type="pubsub")
            await until(lambda: feed_breaks(running) > before)
            yield client
        finally:
            await client.execute_command("ACL", "SETUSER", "default", "+subscribe")


async def test_logout_ends_the_session(guarded: Running, provider: Provider) -> None:
    sid = uuid.uuid4().hex
    async with guarded.client(provider.token(sid=sid)) as client:
        assert (await client.get("/api/me")).status_code == 200
        token = provider.logout_token(sid=sid)
        assert (await client.post(PATH, data={"logout_token": token})).status_code == 200
        assert (await client.get("/api/me")).status_code == 401
        again = await client.post(PATH, data={"logout_token": token})
    assert (again.status_code, again.json()["code"]) == (400, "malformed_request")


async def test_logout_of_a_user_spares_later_sign_ins(serve: Serve, provider: Provider) -> None:
    sub = uuid.uuid4().hex
    old = provider.token(sub=sub, iat=int(time.time()) - 5)
    with serve(**provider.settings(), HW_OIDC__LEEWAY="1") as running:
        async with running.client() as client:
            await client.post(PATH, data={"logout_token": provider.logout_token(sid=None, sub=sub)})

            async def status(token: str) -> int:
                return (await client.get("/api/me", headers={"Authorization": f"Bearer {token}"})).status_code

            async def a_new_one_is_taken() -> bool:
                return await status(provider.token(sub=sub)) == 200

            await until(a_new_one_is_taken)
            assert await status(old) == 401


async def test_no_limit_stops_the_provider(serve: Serve, provider: Provider) -> None:
    limits = {"HW_RATELIMIT__HTTP_PER_MINUTE": "2", "HW_REDIS__KEY_PREFIX": f"{uuid.uuid4().hex}:"}
    with serve(**provider.settings(), **limits) as running:
        async with running.client() as client:
            sent = [await client.post(PATH, data={"logout_token": provider.logout_token()}) for _ in range(5)]
    assert {response.status_code for response in sent} == {200}


def unsigned_logout(provider: Provider) -> str:
    _, body, _ = provider.logout_token().split(".")
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"logout+jwt","kid":"rsa"}').rstrip(b"=").decode()
    return f"{header}.{body}."


DEFECTS: dict[str, Callable[[Provider], str]] = {
    "garbage": lambda p: "garbage",
    "an access token": lambda p: p.token(),
    "an access token for the client": lambda p: p.token(aud="hw-web"),
    "another issuer": lambda p: p.logout_token(iss="http://elsewhere"),
    "another client": lambda p: p.logout_token(aud="other"),
    "no iat": lambda p: p.logout_token(iat=None),
    "an old iat": lambda p: p.logout_token(iat=int(time.time()) - 900, exp=None),
    "an iat to come": lambda p: p.logout_token(iat=int(time.time()) + 900),
    "expired": lambda p: p.logout_token(iat=int(time.time()) - 120, exp=int(time.time()) - 60),
    "no events": lambda p: p.logout_token(events=None),
    "other events": lambda p: p.logout_token(events={"http://other": {}}),
    "events in a list": lambda p: p.logout_token(events=[LOGOUT_EVENT]),
    "an event that is no object": lambda p: p.logout_token(events={LOGOUT_EVENT: 1}),
    "a nonce": lambda p: p.logout_token(nonce="n"),
    "no jti": lambda p: p.logout_token(jti=None),
    "neither sid nor sub": lambda p: p.logout_token(sid=None),
    "a sid that is no text": lambda p: p.logout_token(sid=["a"]),
    "an empty sid": lambda p: p.logout_token(sid=""),
    "alg none": unsigned_logout,
    "a lone surrogate in its sid": lambda p: p.logout_token(sid="a\ud800"),
    "a lone surrogate in its sub": lambda p: p.logout_token(sid=None, sub="a\ud800"),
    "a lone surrogate in its jti": lambda p: p.logout_token(jti="a\ud800"),
    "an iat that is text": lambda p: p.logout_token(iat="1"),
    "an iat of 400 digits": lambda p: p.logout_token(iat=-(10**400)),
}


@pytest.mark.parametrize("defect", DEFECTS)
async def test_refuses_a_logout_token_with(guarded: Running, provider: Provider, defect: str) -> None:
    async with guarded.client() as client:
        response = await client.post(PATH, data={"logout_token": DEFECTS[defect](provider)})
    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")


async def test_a_logout_token_counts_once_for_all_instances(serve: Serve, guarded: Running, provider: Provider) -> None:
    """Replayed after the user signed in again, it ends nothing."""
    sub = uuid.uuid4().hex
    token = provider.logout_token(sid=None, sub=sub)
    with serve(**provider.settings(), HW_OIDC__LEEWAY="0") as second:
        async with second.client() as there, guarded.client() as here:
            assert (await there.post(PATH, data={"logout_token": token})).status_code == 200
            auth = {"Authorization": f"Bearer {provider.token(sub=sub, iat=int(time.time()) + 1)}"}
            for client in (here, there):
                replayed = await client.post(PATH, data={"logout_token": token})
                assert (replayed.status_code, replayed.json()["detail"]) == (400, "the logout token is a replay")

            async def spared() -> bool:
                return (await there.get("/api/me", headers=auth)).status_code == 200

            await until(spared)


async def test_refuses_a_logout_without_a_token(guarded: Running) -> None:
    async with guarded.client() as client:
        assert (await client.post(PATH, data={})).status_code == 400
        assert (await client.post(PATH, json={"logout_token": "x"})).status_code == 400


async def test_an_expiring_token_is_announced_and_ends(serve: Serve, provider: Provider) -> None:
    with serve(**provider.settings(), HW_OIDC__LEEWAY="0") as running:
        token = provider.token(exp=int(time.time()) + 4)
        async with running.socket(token) as socket:
            assert (await socket.read())["method"] == "session.expiring"
            assert await socket.closed() == (4402, "token_expired")


async def test_a_refresh_keeps_the_socket(serve: Serve, provider: Provider) -> None:
    with serve(**provider.settings(), HW_OIDC__LEEWAY="0") as running:
        token = provider.token(exp=int(time.time()) + 4)
        async with running.socket(token) as refreshed, running.socket(token) as other:
            assert (await refreshed.read())["method"] == "session.expiring"
            assert "result" in await refreshed.call("session.refresh", token=provider.token())
            assert await other.closed() == (4402, "token_expired")
            assert (await refreshed.call("ping"))["result"] == "pong"
