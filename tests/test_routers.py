"""A plain router of a feature is as safe as an operation."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from starlette.routing import Mount

from hw_server import audit
from hw_server.app import create_app
from hw_server.http.dependencies import public, require
from hw_server.operations import Feature
from hw_server.settings import load
from tests import files
from tests.conftest import Running, Serve, until
from tests.provider import Provider

Token = Callable[[str], str]


@pytest.fixture(scope="module")
def filing(serve: Serve) -> Iterator[Running]:
    with serve(**files.SETTINGS) as running:
        yield running


async def rows(filing: Running, token: Token, response: httpx.Response) -> list[dict[str, Any]]:
    async with filing.client(token("dave")) as dave:

        async def recorded() -> list[dict[str, Any]]:
            query = {"request_id": response.headers["x-request-id"]}
            items: list[dict[str, Any]] = (await dave.get("/api/audit-logs", params=query)).json()["items"]
            return items

        return await until(recorded)  # type: ignore[no-any-return]


def summary(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("username", "action", "resource", "outcome", "status", "error"))


async def whatever() -> None: ...


@pytest.mark.parametrize("dependencies", [[], [public(), require("things:read")]])
def test_a_route_that_does_not_say_who_may_call_it_is_refused(dependencies: list[Any]) -> None:
    router = APIRouter(prefix="/things")
    router.post("/{id}/picture", dependencies=dependencies)(whatever)
    with pytest.raises(ValueError, match=r"feature things: POST /things/\{id\}/picture needs either"):
        create_app(load({}), [audit.feature, Feature("things", router=router)])


def test_what_cannot_say_who_may_call_it_is_refused() -> None:
    inner = APIRouter()
    outer = APIRouter()
    outer.include_router(inner, prefix="/inner")
    for router in (outer, APIRouter(routes=[Mount("/static", APIRouter())])):
        with pytest.raises(ValueError, match="nothing says who may call it"):
            create_app(load({}), [audit.feature, Feature("things", router=router)])


def test_a_router_may_say_it_for_all_its_routes() -> None:
    router = APIRouter(prefix="/things", dependencies=[require("things:read")])
    router.get("")(whatever)
    for _ in range(2):
        document = create_app(load({}), [audit.feature, Feature("things", router=router)]).api.openapi()
        asked = document["paths"]["/api/things"]["get"]
        assert (asked["x-role"], asked["security"]) == ("things:read", [{"sign-in": []}])
        assert asked["description"].count("Needs the role `things:read`.") == 1


async def test_a_change_is_recorded_before_its_answer(filing: Running, token: Token) -> None:
    name = uuid.uuid4().hex
    async with filing.client(token("alice")) as alice, filing.client(token("dave")) as dave:
        response = await alice.put(f"/api/files/{name}", content=b"hello")
        query = {"request_id": response.headers["x-request-id"]}
        [row] = (await dave.get("/api/audit-logs", params=query)).json()["items"]
    assert summary(row) == ("alice", "files.upload", f"files/{name}", "success", 204, None)


async def test_refusals_and_failures_are_recorded(filing: Running, token: Token) -> None:
    name = uuid.uuid4().hex
    for user, method, path, json, expected in (
        (None, "PUT", name, None, ("files.upload", f"files/{name}", "denied", 401, "unauthenticated")),
        ("bob", "PUT", name, None, ("files.upload", f"files/{name}", "denied", 403, "forbidden")),
        ("dave", "DELETE", name, None, ("files.remove", f"files/{name}", "failure", 500, "internal_error")),
        (None, "GET", name, None, ("files.download", f"files/{name}", "failure", 404, "not_found")),
        ("bob", "POST", "search", 7, ("files.search", "files/search", "failure", 422, "validation_error")),
        ("bob", "POST", "search", [name], ("files.search", "files/search", "success", 200, None)),
        (None, "POST", "report", None, ("files.reported", "files", "success", 202, None)),
    ):
        async with filing.client(token(user) if user else None) as client:
            response = await client.request(method, f"/api/files/{path}", json=json)
        assert [summary(row) for row in await rows(filing, token, response)] == [(user, *expected)]


async def test_a_row_that_cannot_be_stored_costs_no_other(filing: Running, token: Token) -> None:
    """They are written in one batch; PostgreSQL has no NUL."""
    dropped = 'audit_rows_total{result="dropped"}'
    async with filing.client() as nobody:
        before = (await filing.metrics())[dropped]
        reports = [nobody.post("/api/files/report", params={"about": about}) for about in ("1", "2", "\0", "3", "4")]
        responses = await asyncio.gather(*reports)
    for response in (*responses[:2], *responses[3:]):
        assert [row["action"] for row in await rows(filing, token, response)] == ["files.reported"]
    assert (await filing.metrics())[dropped] == before + 1


@pytest.mark.parametrize(("folder", "status", "kept"), [("spill", 204, 1), ("file/spill", 503, 0)])
async def test_a_change_waits_for_its_row_without_postgresql(
    serve: Serve, provider: Provider, tmp_path: Path, folder: str, status: int, kept: int
) -> None:
    (tmp_path / "file").touch()  # in which no folder can be made
    database = {"HW_DATABASE__URL": "postgresql://hw@127.0.0.1:1/none", "HW_DATABASE__MIGRATE_ON_START": "false"}
    settings = {**files.SETTINGS, **provider.settings(), **database}
    with serve(**settings, HW_AUDIT__SPILL_DIR=str(tmp_path / folder)) as running:
        async with running.client(provider.token()) as client:
            response = await client.put(f"/api/files/{uuid.uuid4().hex}", content=b"hello")
    assert (response.status_code, spooled(tmp_path / "spill").count(b"files.upload")) == (status, kept)


def spooled(folder: Path) -> bytes:
    return b"".join(segment.read_bytes() for segment in folder.glob("*"))


async def test_an_owner_is_told_so_in_words(filing: Running, token: Token) -> None:
    path = f"/api/files/{uuid.uuid4().hex}"
    async with filing.client(token("alice")) as alice, filing.client(token("bob")) as bob:
        await alice.put(path, content=b"mine")
        problem = (await bob.delete(path)).json()
    assert (problem["title"], problem["detail"]) == ("Forbidden", "only the owner may remove a file")


async def test_a_body_is_read_for_those_who_may_send_it(filing: Running, token: Token) -> None:
    async with filing.client() as nobody, filing.client(token("carol")) as carol:
        headers = {"Content-Type": "application/json"}
        responses = [
            await client.post("/api/files/search", content=b"{", headers=headers) for client in (nobody, carol)
        ]
        assert [response.status_code for response in responses] == [401, 403]
        assert (await nobody.put("/api/files")).status_code == 404
        assert (await nobody.patch("/api/files/x")).status_code == 405


async def test_a_refusal_of_an_exempt_route_is_recorded_once_by_the_route_itself(filing: Running, token: Token) -> None:
    async with filing.client() as nobody, filing.client(token("dave")) as dave:
        refused = await nobody.post("/api/auth/backchannel-logout", data={"logout_token": "x"})
        assert refused.status_code == 400
        assert await rows(filing, token, await nobody.get("/api/files/none"))  # later in the same queue
        query = {"request_id": refused.headers["x-request-id"]}
        [row] = (await dave.get("/api/audit-logs", params=query)).json()["items"]
    assert (row["action"], row["status"]) == ("sessions.backchannel_logout", 400)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'["",' + b'"",' * 100_000 + b'""]'),
        ("application/json\xa0", b'["",' + b'"",' * 100_000 + b'""]'),  # FastAPI strips what is space in Unicode
        ("application/x+json", b'["",' + b'"",' * 100_000 + b'""]'),
        ("application/json", ('["\\"",' + "[]," * 100_000 + "1]").encode("utf-16-le")),
    ],
)
async def test_a_json_body_has_a_limit_of_members(filing: Running, token: Token, kind: str, body: bytes) -> None:
    async with filing.client(token("dave")) as dave:
        headers = {"Content-Type": kind.encode("latin-1")}
        response = await dave.post("/api/files/search", content=body, headers=headers)  # type: ignore[arg-type]
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


async def test_a_body_without_a_type_is_anything(filing: Running, token: Token) -> None:
    async with filing.client(token("alice")) as alice:
        assert (await alice.put("/api/files/rows.csv", content=b"a,b,c,d\n" * 10_000)).status_code == 204


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
async def test_every_body_has_a_limit(filing: Running, token: Token, method: str) -> None:
    async with filing.client(token("dave")) as dave:
        response = await dave.request(method, "/api/files/nothing", content=b"x" * 1_100_000)
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
