"""Limits: shared between instances, told to the client, the same rule on both protocols."""

import asyncio
import uuid
from collections.abc import Callable

import pytest
import redis
import websockets

from hw_server.embedded import Stack
from tests.conftest import Running, Serve, until
from tests.proxy import Proxy

Token = Callable[[str], str]


def prefix() -> dict[str, str]:
    return {"HW_REDIS__KEY_PREFIX": f"{uuid.uuid4().hex}:"}


async def handshake(running: Running, **headers: str) -> int:
    """The status that answers it."""
    try:
        async with running.socket(additional_headers=headers):
            return 101
    except websockets.InvalidStatus as refused:
        return refused.response.status_code


async def admitted(running: Running, token: str) -> bool:
    return await handshake(running, Authorization=f"Bearer {token}") == 101


async def test_tells_what_is_left(server: Running, token: Token) -> None:
    async with server.client(token("alice")) as client:
        response = await client.get("/api/me")
    assert response.headers["ratelimit"].startswith("limit=6000, remaining=")
    assert response.headers["ratelimit-policy"] == "6000;w=60"


async def test_refuses_past_the_limit(serve: Serve, token: Token) -> None:
    with serve(HW_RATELIMIT__HTTP_PER_MINUTE="5") as running:
        async with running.client(token("alice")) as alice, running.client(token("bob")) as bob:
            assert [(await alice.get("/api/me")).status_code for _ in range(6)] == [200] * 5 + [429]
            refused = await alice.get("/api/nothing")
            assert (await bob.get("/api/me")).status_code == 200
            assert (await alice.get("/health")).status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "remaining=0" in refused.headers["ratelimit"]
    assert refused.headers["x-content-type-options"] == "nosniff"


async def test_counts_strangers_by_address(serve: Serve) -> None:
    with serve(HW_RATELIMIT__HTTP_PER_MINUTE="3") as running:
        async with running.client() as client:
            statuses = [
                (await client.get("/api/me", headers={"Authorization": f"Bearer {i}"})).status_code for i in range(5)
            ]
    assert statuses == [401, 401, 401, 429, 429]


async def test_instances_share_the_count(serve: Serve, token: Token) -> None:
    same = prefix()
    with (
        serve(HW_RATELIMIT__HTTP_PER_MINUTE="6", **same) as one,
        serve(HW_RATELIMIT__HTTP_PER_MINUTE="6", **same) as two,
    ):
        async with one.client(token("alice")) as first, two.client(token("alice")) as second:
            statuses = [(await client.get("/api/me")).status_code for _ in range(4) for client in (first, second)]
    assert statuses == [200] * 6 + [429] * 2


async def test_sockets_have_a_budget_of_their_own(serve: Serve, token: Token) -> None:
    with serve(HW_RATELIMIT__HTTP_PER_MINUTE="1", HW_RATELIMIT__WS_PER_MINUTE="4") as running:
        async with running.socket(token("alice")) as socket:
            codes = [(await socket.call("ping")).get("error", {}).get("code") for _ in range(5)]
        async with running.client(token("alice")) as client:
            assert (await client.get("/api/me")).status_code == 200
    assert codes == [None, None, None, None, -32029]


async def test_caps_the_sockets_of_a_user(serve: Serve, token: Token) -> None:
    same = prefix()
    with (
        serve(HW_RATELIMIT__SOCKETS_PER_USER="2", **same) as one,
        serve(HW_RATELIMIT__SOCKETS_PER_USER="2", **same) as two,
    ):
        async with one.socket(token("alice")), two.socket(token("alice")), two.socket(token("bob")):
            assert await handshake(one, Authorization=f"Bearer {token('alice')}") == 429
        await until(lambda: admitted(two, token("alice")))


async def test_limits_sockets_that_come_at_once(serve: Serve, token: Token) -> None:
    """More than Redis gets connections: none of them may slip through for want of one."""
    with serve(HW_RATELIMIT__SOCKETS_PER_USER="10") as running:
        connecting = [running.socket(token("alice")) for _ in range(120)]
        opened = await asyncio.gather(*(socket.__aenter__() for socket in connecting), return_exceptions=True)
        inside = [socket for socket in opened if not isinstance(socket, BaseException)]
        metrics = await running.metrics()
        await asyncio.gather(*(socket.raw.close() for socket in inside))
    assert len(inside) == 10
    assert not [series for series in metrics if series.startswith("redis_errors_total{")]


async def test_strangers_handshakes_have_a_limit(serve: Serve) -> None:
    with serve(HW_RATELIMIT__HANDSHAKES_PER_MINUTE="3") as running:
        statuses = [await handshake(running), await handshake(running, Authorization="Bearer x")]
        statuses += [await handshake(running) for _ in range(2)]
    assert statuses == [101, 401, 101, 429]


async def test_handshakes_of_foreign_pages_count(serve: Serve) -> None:
    with serve(HW_RATELIMIT__HANDSHAKES_PER_MINUTE="3") as running:
        statuses = [await handshake(running, Origin="https://elsewhere.example") for _ in range(4)]
    assert statuses == [403, 403, 403, 429]


async def test_calls_before_the_sign_in_count(serve: Serve) -> None:
    with serve(HW_RATELIMIT__WS_PER_MINUTE="3") as running:
        async with running.socket() as socket:
            codes = [(await socket.call("notes.list"))["error"]["code"] for _ in range(4)]
    assert codes == [-32001, -32001, -32001, -32029]


async def test_leases_of_a_crashed_instance_run_out(serve: Serve, token: Token, stack: Stack) -> None:
    limits = {"HW_RATELIMIT__SOCKETS_PER_USER": "1", **prefix()}
    key = f"{limits['HW_REDIS__KEY_PREFIX']}sockets:alice"
    with serve(**limits) as one, serve(**limits) as two:
        async with one.socket(token("alice")):
            one.process.kill()
            one.process.wait()
        assert await handshake(two, Authorization=f"Bearer {token('alice')}") == 429
        with redis.Redis.from_url(stack.environment()["HW_REDIS__URL"]) as client:
            [(lease, ends)] = client.zrange(key, 0, -1, withscores=True)
            now, _ = client.time()
            assert (now < ends <= now + 25, 0 < client.ttl(key) <= 60) == (True, True)
            client.zadd(key, {lease: now - 1})  # as if its time had passed
        assert await admitted(two, token("alice"))


async def test_a_lease_that_nobody_knows_of_is_short(serve: Serve, token: Token, stack: Stack) -> None:
    """Redis gave it, and its answer was lost."""
    limits = {"HW_RATELIMIT__SOCKETS_PER_USER": "1", "HW_RATELIMIT__ON_REDIS_DOWN": "closed", **prefix()}
    key = f"{limits['HW_REDIS__KEY_PREFIX']}sockets:alice"
    with (
        Proxy.running(stack.ports.redis) as proxy,
        serve(HW_REDIS__URL=f"redis://127.0.0.1:{proxy.port}", **limits) as running,
        redis.Redis.from_url(stack.environment()["HW_REDIS__URL"]) as client,
    ):
        proxy.mute_at = b"\r\nacquire\r\n"  # the argument, not the script
        assert await handshake(running, Authorization=f"Bearer {token('alice')}") == 503
        [(_, ends)] = client.zrange(key, 0, -1, withscores=True)
        assert ends <= client.time()[0] + 25


async def test_a_renewal_brings_no_lease_back(serve: Serve, token: Token, stack: Stack) -> None:
    """A socket closes while its lease is renewed."""
    limits = {"HW_RATELIMIT__SOCKETS_PER_USER": "1", "HW_REDIS__TIMEOUT": "10", **prefix()}
    with (
        Proxy.running(stack.ports.redis) as proxy,
        serve(HW_REDIS__URL=f"redis://127.0.0.1:{proxy.port}", **limits) as running,
    ):
        async with running.socket(token("alice")):
            proxy.hold_at = b"renew"
            await until(proxy.held.is_set, 40)

        async def closed() -> bool:
            return (await running.metrics())["ws_connections_open"] == 0

        await until(closed)
        proxy.release.set()
        assert await until(lambda: admitted(running, token("alice")))


@pytest.mark.parametrize(("mode", "status"), [("open", 200), ("closed", 503)])
async def test_without_redis_the_setting_decides(serve: Serve, token: Token, mode: str, status: int) -> None:
    with serve(HW_REDIS__URL="redis://127.0.0.1:1", HW_RATELIMIT__ON_REDIS_DOWN=mode) as running:
        async with running.client(token("alice")) as client:
            responses = [await client.get("/api/me") for _ in range(3)]
    assert {response.status_code for response in responses} == {status}


async def test_without_redis_a_process_counts_alone(serve: Serve, token: Token) -> None:
    with serve(HW_REDIS__URL="redis://127.0.0.1:1", HW_RATELIMIT__HTTP_PER_MINUTE="3") as running:
        async with running.client(token("alice")) as client:
            responses = [await client.get("/api/me") for _ in range(4)]
    assert [response.status_code for response in responses] == [200, 200, 200, 429]
