"""${name.capitalize().replace("_", " ")} live, are listed, refuse what conflicts, and are guarded by their roles."""

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.conftest import Running${', Socket' if topic else ''}

Token = Callable[[str], str]
Fields = dict[str, Any]
URL = "/api${path}"


@pytest.fixture
async def five(alice: httpx.AsyncClient, fields: Fields) -> AsyncIterator[str]:
    """A prefix under which there are five ${plural_words}."""
    prefix = uuid.uuid4().hex
    made = [await alice.post(URL, json={**fields, "name": f"{prefix} {index}"}) for index in range(5)]
    assert [response.status_code for response in made] == [201] * 5
    yield prefix
    for response in made:
        await alice.delete(f"{URL}/{response.json()['id']}")


async def test_${article}_${singular}_lives(alice: httpx.AsyncClient, fields: Fields) -> None:
    body = {**fields, "name": f" {uuid.uuid4()} ", "description": "Ünïcode 🎉"}
    made = (await alice.post(URL, json=body)).json()
    url = f"{URL}/{made['id']}"
    assert (made["name"], (await alice.get(url)).json()) == (body["name"].strip(), made)
    patched = (await alice.patch(url, json={"description": "new"})).json()
    assert (patched["description"], patched["name"]) == ("new", made["name"])
    replaced = (await alice.put(url, json={**fields, "name": made["name"]})).json()
    assert (replaced["description"], replaced["name"]) == ("", made["name"])
    gone = await alice.delete(url)
    assert (gone.status_code, gone.content) == (204, b"")
    for method, body in (("GET", None), ("DELETE", None), ("PATCH", {}), ("PUT", {**fields, "name": "x"})):
        assert (await alice.request(method, url, json=body)).status_code == 404


async def test_the_same_over_the_socket(server: Running, token: Token, fields: Fields) -> None:
    async with server.socket(token("alice")) as socket:
        made = (await socket.call("${name}.create", name=str(uuid.uuid4()), **fields))["result"]
        assert (await socket.call("${name}.get", id=made["id"]))["result"] == made
        assert (await socket.call("${name}.list", name=made["name"]))["result"]["items"] == [made]
        assert (await socket.call("${name}.update", id=made["id"], description="x"))["result"]["description"] == "x"
        replaced = await socket.call("${name}.replace", id=made["id"], name=made["name"], **fields)
        assert replaced["result"]["description"] == ""
        again = await socket.call("${name}.create", name=made["name"], **fields)
        assert again["error"]["data"]["detail"] == "${article} ${words} with this name exists"
        assert (await socket.call("${name}.delete", id=made["id"]))["result"] is None
        assert (await socket.call("${name}.get", id=made["id"]))["error"]["code"] == -32004


% if topic:
async def heard(socket: Socket, ${singular}_id: int) -> list[Fields]:
    """The events of one ${words} until it is deleted."""
    received: list[Fields] = []
    while not received or received[-1]["action"] != "deleted":
        message = await socket.read()
        params = message["params"]
        events = params["events"] if message["method"] == "topic.events" else [params]
        received += [event["data"] for event in events if event["data"]["${singular}"]["id"] == ${singular}_id]
    return received


async def test_what_changes_is_published(
    server: Running, token: Token, alice: httpx.AsyncClient, fields: Fields
) -> None:
    async with server.socket(token("bob")) as socket:
        assert (await socket.call("topic.subscribe", topic="${name}"))["result"]["topic"] == "${name}"
        made = (await alice.post(URL, json={**fields, "name": str(uuid.uuid4())})).json()
        url = f"{URL}/{made['id']}"
        patched = (await alice.patch(url, json={"description": "new"})).json()
        replaced = (await alice.put(url, json={**fields, "name": made["name"]})).json()
        await alice.delete(url)
        assert [(event["action"], event["${singular}"]) for event in await heard(socket, made["id"])] == [
            ("created", made), ("updated", patched), ("updated", replaced), ("deleted", replaced)
        ]  # fmt: skip
    async with server.socket(token("carol")) as socket:
        refused = await socket.call("topic.subscribe", topic="${name}")
        assert refused["error"]["data"]["code"] == "forbidden"


% endif
async def test_a_name_is_unique(alice: httpx.AsyncClient, fields: Fields, five: str) -> None:
    refused = await alice.post(URL, json={**fields, "name": f"{five} 1"})
    assert (refused.status_code, refused.json()["detail"]) == (409, "${article} ${words} with this name exists")


% if parent:
async def test_both_sides_of_the_relation_say_what_is_wrong(
    alice: httpx.AsyncClient, ${parent.singular}_id: int, five: str
) -> None:
    missing = await alice.post(URL, json={"name": str(uuid.uuid4()), "${parent.singular}_id": 2**63 - 1})
    assert (missing.status_code, missing.json()["detail"]) == (409, "there is no such ${parent.words}")
    used = await alice.delete(f"/api${parent.path}/{${parent.singular}_id}")
    assert (used.status_code, used.json()["detail"]) == (409, "the ${parent.words} has ${plural_words}; delete them first")


async def test_those_of_one_${parent.singular}(alice: httpx.AsyncClient, ${parent.singular}_id: int, five: str) -> None:
    listed = (await alice.get(URL, params={"${parent.singular}_id": ${parent.singular}_id})).json()["items"]
    assert [${singular}["name"] for ${singular} in listed] == [f"{five} {index}" for index in range(5)]
    assert (await alice.get(URL, params={"name": five, "${parent.singular}_id": 2**63 - 1})).json()["items"] == []


% endif
@pytest.mark.parametrize("sort", ["id", "-id", "name", "-name", "created_at", "-created_at"])
async def test_a_cursor_walks_the_whole_list(alice: httpx.AsyncClient, five: str, sort: str) -> None:
    names: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"name": five.upper(), "per_page": 2, "sort": sort, **({"cursor": cursor} if cursor else {})}
        page = (await alice.get(URL, params=query)).json()
        names += [${singular}["name"] for ${singular} in page["items"]]
        cursor = page["next_cursor"]
    assert names == sorted((f"{five} {index}" for index in range(5)), reverse=sort.startswith("-"))


async def test_a_page_number_brings_the_total(alice: httpx.AsyncClient, five: str) -> None:
    page = (await alice.get(URL, params={"name": five, "per_page": 2, "page": 3})).json()
    assert (len(page["items"]), page["total"], page["page"], page["next_cursor"]) == (1, 5, 3, None)


async def test_readers_do_not_write(server: Running, token: Token, fields: Fields) -> None:
    async with server.client(token("bob")) as bob:
        assert (await bob.get(URL)).status_code == 200
        assert (await bob.post(URL, json={**fields, "name": "x"})).status_code == 403
    async with server.client(token("carol")) as carol:
        assert (await carol.get(URL)).status_code == 403
    async with server.client() as stranger:
        assert (await stranger.get(URL)).status_code == 401
