"""Lists and single rows over both protocols: pages, totals, cursors, lists in a query, operations for anybody."""

import random
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import date
from typing import Any

import asyncpg
import httpx
import pytest

from hw_server.db import Where
from hw_server.operations import Sort
from tests.conftest import Running
from tests.notes.models import Note, NoteCount

DATES = [date(2030, month, 1) for month in (1, 2, 3)]
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


async def walk(client: httpx.AsyncClient, **query: str | int) -> AsyncIterator[list[dict[str, Any]]]:
    """The pages of the notes, by cursor."""
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get("/api/notes", params={**query, **({"cursor": cursor} if cursor else {})})).json()
        yield page["items"]
        cursor = page["next_cursor"]


@pytest.mark.parametrize("sort", ["id", "-id", "title", "-title"])
async def test_a_cursor_walks_the_whole_list(alice: httpx.AsyncClient, shelf: str, sort: str) -> None:
    pages = [page async for page in walk(alice, title=shelf, per_page=2, sort=sort)]
    titles = [note["title"] for page in pages for note in page]
    assert titles == sorted((f"{shelf} {index}" for index in range(5)), reverse=sort.startswith("-"))


@pytest.mark.parametrize("sort", ["due", "-due", "title", "-title", "id", "-id"])
async def test_a_cursor_skips_nothing_and_repeats_nothing_while_rows_are_added(
    alice: httpx.AsyncClient, database: asyncpg.Connection, sort: str
) -> None:
    """Three dates, or none, for sixty rows: most pages end within rows of one sort value."""
    mark, choose = uuid.uuid4().hex, random.Random(sort)

    async def add(count: int) -> set[int]:
        rows = [(f"{mark} {uuid.uuid4()}", choose.choice([None, *DATES])) for _ in range(count)]
        insert = "INSERT INTO notes (title, due) SELECT * FROM unnest($1::text[], $2::date[]) RETURNING id"
        return {row["id"] for row in await database.fetch(insert, *map(list, zip(*rows, strict=True)))}

    before, later, seen = await add(60), set[int](), list[int]()
    async for page in walk(alice, title=mark, per_page=7, sort=sort):
        seen += [note["id"] for note in page]
        later |= await add(3) if len(later) < 60 else set()
    assert len(seen) == len(set(seen))
    assert before <= set(seen) <= before | later
    column = sort.removeprefix("-")
    order = f"ORDER BY {column}, id" if column == sort else f"ORDER BY {column} DESC, id DESC"
    sorted_by_database = await database.fetch(f"SELECT id FROM notes WHERE id = ANY($1) {order}", seen)
    assert seen == [row["id"] for row in sorted_by_database]


async def test_a_cursor_belongs_to_its_order(alice: httpx.AsyncClient, shelf: str) -> None:
    query = {"title": shelf, "per_page": 2}
    cursor = (await alice.get("/api/notes", params={**query, "sort": "due"})).json()["next_cursor"]
    assert (await alice.get("/api/notes", params={**query, "sort": "due", "cursor": cursor})).status_code == 200
    for sort in ("-due", "title", "id"):
        refused = await alice.get("/api/notes", params={**query, "sort": sort, "cursor": cursor})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "cursor")


def test_a_list_is_sorted_by_columns_it_has() -> None:
    with pytest.raises(ValueError, match="a list of Note cannot be sorted by -size: it needs size and id"):
        Sort(Note, "id", "-size")
    with pytest.raises(ValueError, match="needs total and id"):
        Sort(NoteCount, "total")


def test_conditions_without_a_value_are_left_out() -> None:
    where = Where().add("a = {}", None).add("b > {1} OR b = {0}", 1, 2).add("c IS NULL").add("d = {}", 3)
    assert (str(where), where.args) == ("(b > $2 OR b = $1) AND (c IS NULL) AND (d = $3)", [1, 2, 3])
    assert (str(Where()), str(Where().add("a = {}", False))) == ("true", "(a = $1)")


async def test_a_page_number_brings_the_total(alice: httpx.AsyncClient, shelf: str) -> None:
    query = {"title": shelf, "per_page": 2, "page": 3}
    page = (await alice.get("/api/notes", params=query)).json()
    assert (len(page["items"]), page["total"], page["page"], page["next_cursor"]) == (1, 5, 3, None)
    plain = (await alice.get("/api/notes", params={"per_page": 2})).json()
    assert set(plain) == {"items", "per_page", "next_cursor"}


async def test_a_write_invalidates_the_cached_total(alice: httpx.AsyncClient, shelf: str) -> None:
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
