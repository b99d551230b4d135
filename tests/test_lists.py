"""Lists and single rows over both protocols: pages, totals, cursors, lists in a query, operations for anybody."""

import uuid
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.conftest import Running

Token = Callable[[str], str]


@pytest.fixture
async def shelf(alice: httpx.AsyncClient) -> AsyncIterator[str]:
    """A prefix under which five notes stand."""
    prefix = uuid.uuid4().hex
    for index in range(5):
        body = {"title": f"{prefix} {index}", "due": f"20{index}0-01-01"}
        assert (await alice.post("/api/notes", json=body)).status_code == 201
    yield prefix
    for note in (await alice.get("/api/notes", params={"title": prefix, "per_page": 100})).json()["items"]:
        await alice.delete(f"/api/notes/{note['id']}")


async def test_a_note_lives(alice: httpx.AsyncClient) -> None:
    made = (await alice.post("/api/notes", json={"title": f" {uuid.uuid4()} ", "text": "Ünïcode 🎉"})).json()
    path = f"/api/notes/{made['id']}"
    assert (await alice.get(path)).json() == made
    patched = (await alice.patch(path, json={"due": "2030-01-02"})).json()
    assert (patched["due"], patched["text"], patched["title"]) == ("2030-01-02", "Ünïcode 🎉", made["title"])
    replaced = (await alice.put(path, json={"title": made["title"]})).json()
    assert (replaced["due"], replaced["text"]) == (None, "")
    gone = await alice.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert [(await alice.request(method, path, json=body)).status_code for method, body in
            (("GET", None), ("DELETE", None), ("PATCH", {}), ("PUT", {"title": "x"}))] == [404, 404, 404, 404]  # fmt: skip


async def test_the_same_over_the_socket(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        made = (await socket.call("notes.create", title=str(uuid.uuid4())))["result"]
        assert (await socket.call("notes.get", id=made["id"]))["result"] == made
        assert (await socket.call("notes.update", id=made["id"], text="x"))["result"]["text"] == "x"
        assert (await socket.call("notes.replace", id=made["id"], title=made["title"]))["result"]["text"] == ""
        refused = (await socket.call("notes.create", title=made["title"]))["error"]["data"]
        assert (refused["code"], refused["detail"]) == ("conflict", "a note with this title exists")
        assert (await socket.call("notes.delete", id=made["id"]))["result"] is None
        assert (await socket.call("notes.get", id=made["id"]))["error"]["code"] == -32004


@pytest.mark.parametrize("sort", ["id", "-id", "title", "-title"])
async def test_a_cursor_walks_the_whole_list(alice: httpx.AsyncClient, shelf: str, sort: str) -> None:
    titles: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"title": shelf, "per_page": 2, "sort": sort, **({"cursor": cursor} if cursor else {})}
        page = (await alice.get("/api/notes", params=query)).json()
        titles += [note["title"] for note in page["items"]]
        cursor = page["next_cursor"]
    assert titles == sorted((f"{shelf} {index}" for index in range(5)), reverse=sort.startswith("-"))


async def test_a_page_number_brings_the_total(alice: httpx.AsyncClient, shelf: str) -> None:
    query = {"title": shelf, "per_page": 2, "page": 3}
    page = (await alice.get("/api/notes", params=query)).json()
    assert (len(page["items"]), page["total"], page["page"], page["next_cursor"]) == (1, 5, 3, None)
    plain = (await alice.get("/api/notes", params={"per_page": 2})).json()
    assert set(plain) == {"items", "per_page", "next_cursor"}


async def test_a_write_drops_the_cached_total(alice: httpx.AsyncClient, shelf: str) -> None:
    async def total() -> int:
        response = await alice.get("/api/notes", params={"title": shelf, "page": 1})
        return int(response.json()["total"])

    assert await total() == 5
    await alice.post("/api/notes", json={"title": f"{shelf} 9"})
    assert await total() == 6


async def test_filters(alice: httpx.AsyncClient, shelf: str) -> None:
    query = {"title": shelf.upper(), "due_from": "2010-01-01", "due_to": "2030-01-01"}
    notes = (await alice.get("/api/notes", params=query)).json()["items"]
    assert [note["due"][:4] for note in notes] == ["2010", "2020", "2030"]


@pytest.fixture
async def tagged(alice: httpx.AsyncClient) -> AsyncIterator[tuple[str, str]]:
    """Two tags, and three notes: one with the first, one with the second, one with both."""
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    made = []
    for text in (f"#{first}", f"#{second}", f"#{first} #{second}"):
        made.append((await alice.post("/api/notes", json={"title": str(uuid.uuid4()), "text": text})).json()["id"])
    yield first, second
    for note in made:
        await alice.delete(f"/api/notes/{note}")


async def test_a_query_has_a_list(
    server: Running, token: Token, alice: httpx.AsyncClient, tagged: tuple[str, str]
) -> None:
    first, second = tagged
    async with server.socket(token("alice")) as socket:
        for tags, count in (([first], 2), ([second], 2), ([first, second], 1)):
            page = (await alice.get("/api/notes/tagged", params={"tags": tags})).json()
            assert len(page["items"]) == count
            assert (await socket.call("notes.tagged", tags=tags))["result"] == page


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", ["tags"]),
        ("?tags=a&tags=b&tags=c&tags=d", ["tags"]),
        ("?tags=a&tags=%00", ["tags.1"]),
        ("?tag=a", ["tags", "tag"]),
    ],
)
async def test_a_bad_list_is_named(alice: httpx.AsyncClient, query: str, fields: list[str]) -> None:
    response = await alice.get(f"/api/notes/tagged{query}")
    assert response.status_code == 422
    assert [problem["field"] for problem in response.json()["errors"]] == fields


async def test_a_list_of_a_call_is_a_list(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        for tags in ("a", [1], {"0": "a"}, None):
            assert (await socket.call("notes.tagged", tags=tags))["error"]["code"] == -32602
