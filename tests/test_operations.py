"""What a declaration may not say is refused at start."""

import uuid
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from hw_server.app import create_app
from hw_server.errors import DomainError
from hw_server.http.problems import STATUS
from hw_server.operations import CountCache, Feature, Operations, Provided, Read
from hw_server.operations.binder import Binder
from hw_server.settings import load
from hw_server.ws.codes import RPC_CODE
from tests.conftest import Running, until


class Body(BaseModel):
    id: int


def bind(handler: Any, method: str = "put", path: str = "/{id}") -> Binder:
    operations = Operations("/things")
    getattr(operations, method)("things.do", path, public=True)(handler)
    return Binder(operations.declared[0], {})


def test_needs_a_role_or_public() -> None:
    with pytest.raises(ValueError, match="either a role or public"):
        Operations("/things").get("things.list")
    with pytest.raises(ValueError, match="either a role or public"):
        Operations("/things").get("things.list", role="x", public=True)


async def collision(id: int, body: Body) -> None: ...
async def unanswered(id: int): ...  # type: ignore[no-untyped-def]
async def stranger(id: int, what: str) -> None: ...
async def without_path() -> None: ...
async def unprovided(id: int, counts: Provided[CountCache]) -> None: ...
async def flat(id: int, body: int) -> None: ...
async def whole(id: int) -> None: ...


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (collision, "id is in id and in body"),
        (unanswered, "needs a type"),
        (stranger, "parameter what"),
        (without_path, "the path has {id}"),
        (unprovided, "nothing provides CountCache"),
        (flat, "must be pydantic models"),
    ],
)
def test_refuses_a_declaration(handler: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bind(handler)


async def with_body(db: Read, id: int, body: Body) -> None: ...


def test_a_get_has_no_body() -> None:
    with pytest.raises(ValueError, match="GET has no body"):
        bind(with_body, "get")


def test_a_route_is_declared_once() -> None:
    operations = Operations("/things")
    for name in ("things.get", "things.find"):
        operations.get(name, "/{id}", public=True)(whole)
    with pytest.raises(ValueError, match=r"things.find: GET /things/\{id\} is declared twice"):
        create_app(load({}), [Feature("things", operations)])


def test_problems_and_rpc_codes_map_one_to_one() -> None:
    only_http = {"host_not_allowed", "origin_not_allowed", "method_not_allowed", "unsupported_media_type"}
    only_http |= {"client_disconnected"}
    only_rpc = {"parse_error", "invalid_request", "method_not_found"}
    assert STATUS.keys() - only_http == RPC_CODE.keys() - only_rpc
    assert len(set(RPC_CODE.values())) == len(RPC_CODE)


def test_every_error_has_a_status() -> None:
    from hw_server import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DomainError)]
    assert {kind.code for kind in kinds} == STATUS.keys()


async def test_what_follows_the_commit_undoes_nothing(server: Running, dave: httpx.AsyncClient) -> None:
    made = await dave.post("/api/notes/announced", json={"title": str(uuid.uuid4())})
    query = {"request_id": made.headers["x-request-id"]}
    [row] = (await dave.get("/api/audit-logs", params=query)).json()["items"]
    assert (made.status_code, row["outcome"]) == (201, "success")
    assert (await dave.get(f"/api/notes/{made.json()['id']}")).status_code == 200
    [line] = await until(lambda: [line for line in server.log() if line["event"] == "after_commit_failed"])
    assert (line["operation"], "nobody listens" in line["error"]) == ("notes.announce", True)
