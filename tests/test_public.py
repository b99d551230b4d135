"""An operation for anybody: with a token, without one, and with one that is refused elsewhere."""

import pytest

from tests.conftest import Running
from tests.provider import Provider


@pytest.mark.parametrize("credentials", [None, "Bearer garbage", "Bearer a.b.c", "Basic YTpi"])
async def test_a_stranger_is_answered(guarded: Running, credentials: str | None) -> None:
    headers = {"Authorization": credentials} if credentials else {}
    async with guarded.client() as client:
        response = await client.get("/api/notes/count", headers=headers)
        refused = await client.get("/api/notes", headers=headers)
    assert (response.status_code, response.json()["asked_by"]) == (200, None)
    assert refused.status_code == 401


async def test_an_expired_token_makes_a_stranger(guarded: Running, provider: Provider) -> None:
    async with guarded.client(provider.token(iat=1, exp=2)) as client:
        assert (await client.get("/api/notes/count")).json()["asked_by"] is None


async def test_a_caller_is_known(guarded: Running, provider: Provider) -> None:
    async with guarded.client(provider.token(realm_access=None)) as client:
        response = await client.get("/api/notes/count")
    assert (response.status_code, response.json()["asked_by"]) == (200, "ann")


async def test_a_socket_needs_no_sign_in(guarded: Running, provider: Provider) -> None:
    async with guarded.socket() as socket:
        assert (await socket.call("notes.count"))["result"]["asked_by"] is None
        assert (await socket.call("notes.list"))["error"]["code"] == -32001
        await socket.call("session.authenticate", token=provider.token())
        assert (await socket.call("notes.count"))["result"]["asked_by"] == "ann"


async def test_the_documents_ask_for_no_sign_in(guarded: Running) -> None:
    async with guarded.client() as client:
        document = (await client.get("/openapi.json")).json()
    count, listing = (document["paths"][path]["get"] for path in ("/api/notes/count", "/api/notes"))
    assert ("security" in count, "security" in listing) == (False, True)
    assert {"401", "403"} & count["responses"].keys() == set()
