"""The example feature: authors live, are listed, and are guarded by their roles."""

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.conftest import Running, Socket

Token = Callable[[str], str]


@pytest.fixture
async def shelf(alice: httpx.AsyncClient) -> AsyncIterator[str]:
    """A prefix under which five authors stand."""
    prefix = uuid.uuid4().hex
    for index in range(5):
        body = {"name": f"{prefix} {index}", "born": f"19{index}0-01-01"}
        assert (await alice.post("/api/authors", json=body)).status_code == 201
    yield prefix
    for author in (await alice.get("/api/authors", params={"name": prefix, "per_page": 100})).json()["items"]:
        await alice.delete(f"/api/authors/{author['id']}")


async def test_an_author_lives(alice: httpx.AsyncClient) -> None:
    made = (await alice.post("/api/authors", json={"name": f" {uuid.uuid4()} ", "bio": "Ünïcode 🎉"})).json()
    path = f"/api/authors/{made['id']}"
    assert (await alice.get(path)).json() == made
    patched = (await alice.patch(path, json={"born": "1900-01-02"})).json()
    assert (patched["born"], patched["bio"], patched["name"]) == ("1900-01-02", "Ünïcode 🎉", made["name"])
    replaced = (await alice.put(path, json={"name": made["name"]})).json()
    assert (replaced["born"], replaced["bio"]) == (None, "")
    gone = await alice.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert [(await alice.request(method, path, json=body)).status_code for method, body in
            (("GET", None), ("DELETE", None), ("PATCH", {}), ("PUT", {"name": "x"}))] == [404, 404, 404, 404]  # fmt: skip


async def test_the_same_over_the_socket(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        made = (await socket.call("authors.create", name=str(uuid.uuid4())))["result"]
        assert (await socket.call("authors.get", id=made["id"]))["result"] == made
        assert (await socket.call("authors.update", id=made["id"], bio="x"))["result"]["bio"] == "x"
        assert (await socket.call("authors.replace", id=made["id"], name=made["name"]))["result"]["bio"] == ""
        assert (await socket.call("authors.create", name=made["name"]))["error"]["data"]["code"] == "conflict"
        assert (await socket.call("authors.delete", id=made["id"]))["result"] is None
        assert (await socket.call("authors.get", id=made["id"]))["error"]["code"] == -32004


async def test_its_life_is_told(alice: httpx.AsyncClient, server: Running, token: Token) -> None:
    async with server.socket(token("bob")) as socket:
        assert "result" in await socket.call("topic.subscribe", topic="authors")
        made = (await alice.post("/api/authors", json={"name": str(uuid.uuid4())})).json()
        path = f"/api/authors/{made['id']}"
        changed = (await alice.patch(path, json={"bio": "x"})).json()
        replaced = (await alice.put(path, json={"name": made["name"], "bio": "y"})).json()
        assert (await alice.delete(path)).status_code == 204
        events = [event async for event in events_of(socket, made["id"], 4)]
    assert events == [
        {"action": "created", "author": made},
        {"action": "updated", "author": changed},
        {"action": "updated", "author": replaced},
        {"action": "deleted", "author": replaced},
    ]


async def events_of(socket: Socket, author: int, count: int) -> AsyncIterator[Any]:
    """Data of the next events that tell of one author."""
    while count:
        params = (await socket.read())["params"]
        for event in params.get("events", [params]):
            if event["data"]["author"]["id"] == author:
                count -= 1
                yield event["data"]


@pytest.mark.parametrize("sort", ["id", "-id", "name", "-name"])
async def test_a_cursor_walks_the_whole_list(alice: httpx.AsyncClient, shelf: str, sort: str) -> None:
    names: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"name": shelf, "per_page": 2, "sort": sort, **({"cursor": cursor} if cursor else {})}
        page = (await alice.get("/api/authors", params=query)).json()
        names += [author["name"] for author in page["items"]]
        cursor = page["next_cursor"]
    assert names == sorted((f"{shelf} {index}" for index in range(5)), reverse=sort.startswith("-"))


async def test_filters(alice: httpx.AsyncClient, shelf: str) -> None:
    query = {"name": shelf.upper(), "born_from": "1910-01-01", "born_to": "1930-01-01"}
    authors = (await alice.get("/api/authors", params=query)).json()["items"]
    assert [author["born"][:4] for author in authors] == ["1910", "1920", "1930"]


async def test_readers_do_not_write(server: Running, token: Token) -> None:
    async with server.client(token("bob")) as bob:
        assert (await bob.get("/api/authors")).status_code == 200
        assert (await bob.post("/api/authors", json={"name": "x"})).status_code == 403
    async with server.client(token("carol")) as carol:
        assert (await carol.get("/api/authors")).status_code == 403
