"""What a declaration may not say is refused at start."""

import inspect
import json
import uuid
from datetime import date
from typing import Annotated, Any

import httpx
import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hw_server import audit
from hw_server.app import create_app
from hw_server.auth import Principal
from hw_server.errors import DomainError, InvalidInput
from hw_server.operations import AfterCommit, CountCache, Events, Feature, Operations, Provided, Read, Socket, Write
from hw_server.operations.binding import Binder
from hw_server.operations.signature import PATH_FIELD, Signature, read_signature
from hw_server.runtime.parts import Parts
from hw_server.settings import load
from hw_server.ws.codes import PLATFORM_ERRORS, RPC_ERRORS
from tests.conftest import Running, until


class Body(BaseModel):
    id: int


class Named(BaseModel):
    title: str = Field(validation_alias=AliasChoices("title", "name"))


def bind(handler: Any, method: str = "put", path: str = "/{id}") -> Signature:
    operations = Operations("/things")
    getattr(operations, method)("things.do", path, public=True)(handler)
    return read_signature(operations.declared[0], Parts())


def test_needs_a_role_or_public() -> None:
    with pytest.raises(ValueError, match="either a role or public"):
        Operations("/things").get("things.list")
    with pytest.raises(ValueError, match="either a role or public"):
        Operations("/things").get("things.list", role="x", public=True)
    with pytest.raises(ValueError, match="say public=True"):
        Operations("/things").get("things.list", role="public")


async def collision(id: int, body: Body) -> None: ...
async def unanswered(id: int): ...  # type: ignore[no-untyped-def]
async def stranger(id: int, what: str) -> None: ...
async def without_path() -> None: ...
async def unprovided(id: int, counts: Provided[CountCache]) -> None: ...
async def flat(id: int, body: int) -> None: ...
async def whole(id: int) -> None: ...
async def follows_nothing(id: int, after: AfterCommit) -> None: ...
async def reads_and_writes(id: int, db: Read, other: Write) -> None: ...
async def sure_of_its_caller(id: int, db: Write, caller: Principal) -> None: ...
async def two_names(id: int, body: Named) -> None: ...
async def over_http(id: int, db: Write, socket: Socket[Any]) -> None: ...
async def read_only(id: int, db: Read) -> None: ...


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (collision, "id is in id and in body"),
        (unanswered, "needs a type"),
        (stranger, "parameter what"),
        (two_names, "title has more than one name"),
        (without_path, "the path has {id}"),
        (unprovided, "nothing provides CountCache"),
        (flat, "must be pydantic models"),
        (whole, "it changes something without Write"),
        (follows_nothing, "it changes something without Write"),
        (reads_and_writes, "other is a second connection"),
        (sure_of_its_caller, r"it is public, so caller may be None: say Principal \| None"),
        (over_http, "HTTP has no socket to give"),
    ],
)
def test_refuses_a_declaration(handler: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bind(handler)


async def reads_and_publishes(db: Read, id: int, events: Events) -> None: ...
async def publishes(id: int, events: Events) -> None: ...


def test_events_need_a_transaction() -> None:
    with pytest.raises(ValueError, match="Events needs Write, or no connection"):
        bind(reads_and_publishes)
    with pytest.raises(ValueError, match="it only reads, and takes Events"):
        bind(publishes, "get")


@pytest.mark.parametrize(
    ("handler", "options", "why"),
    [
        (follows_nothing, {"audit": "direct"}, "AfterCommit needs Write"),
        (over_http, {"audit": "direct"}, 'audit="direct" contradicts Write'),
        (read_only, {"reads": True, "audit": "direct"}, 'audit="direct" is for what changes something'),
    ],
)
def test_refuses_options_that_contradict(handler: Any, options: dict[str, Any], why: str) -> None:
    operations = Operations("/things")
    operations.post("things.do", "/{id}", public=True, **options)(handler)
    with pytest.raises(ValueError, match=why):
        read_signature(operations.declared[0], Parts())


@pytest.mark.parametrize("audit", ["never", "queued"])
def test_a_change_leaves_a_row_before_its_answer(audit: Any) -> None:
    operations = Operations()
    operations.rpc("things.do", public=True, changes=True, audit=audit)(search)
    with pytest.raises(ValueError, match="writes no row before the answer"):
        read_signature(operations.declared[0], Parts())


async def with_body(db: Read, id: int, body: Body) -> None: ...


def test_a_get_has_no_body() -> None:
    with pytest.raises(ValueError, match="GET has no body"):
        bind(with_body, "get")


def test_a_route_is_declared_once() -> None:
    operations = Operations("/things")
    for name in ("things.get", "things.find"):
        operations.get(name, "/{id}", public=True)(whole)
    with pytest.raises(ValueError, match=r"things.find: GET /things/\{id\} is declared twice"):
        create_app(load({}), [audit.feature, Feature("things", operations)])


class Search(BaseModel):
    model_config = ConfigDict(extra="forbid")

    day: date
    tags: tuple[str, ...] = ()


def of_this_century(query: Search) -> Search:
    if query.day.year < 2000:
        raise ValueError("too early")
    return query


async def search(query: Annotated[Search, AfterValidator(of_this_century)]) -> None: ...


@pytest.mark.parametrize(
    ("request_id", "params"),
    [
        ("1", '{"day": "2026-01-02", "tags": ["a"]}'),
        ('"x"', '{"day": "2026-01-02"}'),
        ("1", '{"day": 0}'),
        ("1", '{"day": "1999-01-02"}'),
        ("1", '{"day": "2026-01-02", "more": 1}'),
        ("1", '{"day": "2026-01-02", "tags": [NaN]}'),
        ("true", '{"day": "2026-01-02"}'),
        ("1", '{"day": "2020-01-01", "day": "2026-01-02", "method": "x"}'),
    ],
)
def test_a_request_that_is_parsed_once_gives_the_same(request_id: str, params: str) -> None:
    operations = Operations()
    operations.rpc("things.search", public=True)(search)
    binder = Binder(operations.declared[0], read_signature(operations.declared[0], Parts()))
    once = binder.from_request(
        f'{{"jsonrpc": "2.0", "id": {request_id}, "method": "things.search", "params": {params}}}'.encode()
    )
    try:
        expected = binder.from_rpc(json.loads(params)) if request_id != "true" and "NaN" not in params else None
    except InvalidInput:
        expected = None
    assert (once and once[1]) == expected


class Title(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str
    day: date | None = None

    @property
    def shelf(self) -> int:
        return 0


class Stripped(Title):
    model_config = ConfigDict(str_strip_whitespace=True)


class Counted(Title):
    @model_validator(mode="before")
    @classmethod
    def few(cls, values: Any) -> Any:
        return {**values, "title": ",".join(values)}


class Watched(Title):
    @field_validator("*")
    @classmethod
    def named(cls, value: Any, info: ValidationInfo) -> Any:
        return info.field_name if isinstance(value, str) else value


class Renamed(Title):
    title: str = Field(alias="name")


class Private(Title):
    _made: list[int] = PrivateAttr(default_factory=list)


class Checked(Title):
    @field_validator("title")
    @classmethod
    def seen(cls, value: str, info: ValidationInfo) -> str:
        return f"{value} {sorted(info.data)}"


class Copies(BaseModel):
    model_config = ConfigDict(extra="forbid")

    copies: int = 1


class FewCopies(Copies):
    @field_validator("copies")
    @classmethod
    def seen(cls, value: int) -> int:
        return min(value, 9)


def retitling(path: str, models: dict[str, Any]) -> Binder:
    async def change() -> None: ...

    fields = dict.fromkeys(PATH_FIELD.findall(path), Annotated[str, Field(max_length=9)]) | models
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in fields]
    change.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    change.__annotations__ = {**fields, "return": None}
    operations = Operations()
    if "body" in models:
        operations.put("things.change", path, public=True, audit="direct")(change)
    else:
        operations.get("things.change", path, public=True)(change)
    return Binder(operations.declared[0], read_signature(operations.declared[0], Parts()))


def sent(arguments: dict[str, Any]) -> Any:
    return arguments, [value.model_fields_set for value in arguments.values() if isinstance(value, BaseModel)]


TITLES = [
    {"title": "a", "day": "2026-01-02"},
    {"title": " a "},
    {"name": "b"},
    {"title": 1},
    {"title": "c", "more": 1},
    {},
]


@pytest.mark.parametrize("where", [("body",), ("query",), ("query", "body")])
@pytest.mark.parametrize("path", ["/{id}", "/{shelf}", "/{shelf}/{id}"])
@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (Title, True), (Checked, False), (Stripped, False), (Counted, False), (Watched, False), (Renamed, False),
        (Private, False), (Annotated[Title, AfterValidator(lambda title: title)], False),
    ],
)  # fmt: skip
def test_a_path_and_a_model_are_parsed_once_where_that_gives_the_same(
    kind: Any, plain: bool, path: str, where: tuple[str, ...]
) -> None:
    binder, results = retitling(path, {"query": Copies, "body": kind} if len(where) > 1 else {where[0]: kind}), []
    for title in TITLES:
        params = title | dict.fromkeys(PATH_FIELD.findall(path), " x ")
        once = binder.from_request(json.dumps({"jsonrpc": "2.0", "method": "things.change", "params": params}).encode())
        try:
            results.append((once and sent(once[1]), sent(binder.from_rpc(params))))
        except InvalidInput:
            assert once is None
    assert results
    assert results == [(right if plain else None, right) for _, right in results]


def test_two_validators_of_one_name_both_count() -> None:
    binder, params = retitling("/{id}", {"query": FewCopies, "body": Checked}), {"id": "x", "copies": 99, "title": "a"}
    request = {"jsonrpc": "2.0", "id": 1, "method": "things.change", "params": params}
    once = binder.from_request(json.dumps(request).encode())
    expected = binder.from_rpc(params)
    assert (expected["query"].copies, expected["body"].title) == (9, "a []")
    assert once is None or once[1] == expected


def test_many_members_are_not_validated_before_the_call_is_admitted() -> None:
    operations = Operations()
    operations.rpc("things.search", public=True)(search)
    binder = Binder(operations.declared[0], read_signature(operations.declared[0], Parts()))
    params = {"day": "2026-01-02", "tags": ["a"] * 600}
    request = {"jsonrpc": "2.0", "id": 1, "method": "things.search", "params": params}
    assert binder.from_request(json.dumps(request).encode()) is None
    assert len(binder.from_rpc(params)["query"].tags) == 600


def test_problems_and_rpc_codes_map_one_to_one() -> None:
    assert len({kind.code for kind in PLATFORM_ERRORS}) == len(PLATFORM_ERRORS)
    assert len({kind.rpc_code for kind in RPC_ERRORS}) == len(RPC_ERRORS)


def test_an_error_without_a_status_is_refused() -> None:
    with pytest.raises(TypeError, match="Odd: `title` is neither set nor inherited"):
        type("Odd", (DomainError,), {"code": "odd"})


async def test_what_follows_the_commit_undoes_nothing(server: Running, dave: httpx.AsyncClient) -> None:
    made = await dave.post("/api/notes/announced", json={"title": str(uuid.uuid4())})
    query = {"request_id": made.headers["x-request-id"]}
    [row] = (await dave.get("/api/audit-logs", params=query)).json()["items"]
    assert (made.status_code, row["outcome"]) == (201, "success")
    assert (await dave.get(f"/api/notes/{made.json()['id']}")).status_code == 200
    [line] = await until(lambda: [line for line in server.log() if line["event"] == "after_commit_failed"])
    assert (line["operation"], "nobody listens" in line["error"]) == ("notes.announce", True)
    assert (line["request_id"], line["user_id"]) == (made.headers["x-request-id"], "dave")


@pytest.mark.parametrize("value", ["0", "1700000000", "20201001", "2020-W40-4", "2020-10-01T00:00:00"])
async def test_a_date_is_written_as_in_rfc_3339(
    server: Running, dave: httpx.AsyncClient, token: Any, value: str
) -> None:
    """Pydantic alone takes numbers as seconds since 1970, in texts too."""
    async with server.socket(token("dave")) as socket:
        called = [
            await socket.call("notes.list", due_to=value),
            await socket.call("notes.create", title=str(uuid.uuid4()), due=value),
            await socket.call("audit.list", until=value),
        ]
    assert [len(call["error"]["data"]["errors"]) for call in called] == [1, 1, 1]
    asked = [
        await dave.get("/api/notes", params={"due_to": value}),
        await dave.post("/api/notes", json={"title": str(uuid.uuid4()), "due": value}),
        await dave.get("/api/audit-logs", params={"until": value}),
        await dave.get("/api/audit-logs/export", params={"until": value}),
    ]
    assert [answer.status_code for answer in asked] == [422] * 4


async def test_dates_and_moments_are_taken(dave: httpx.AsyncClient) -> None:
    made = await dave.post("/api/notes", json={"title": str(uuid.uuid4()), "due": "2020-10-01"})
    assert (made.status_code, made.json()["due"]) == (201, "2020-10-01")
    for moment in ("2020-10-01T00:00:00Z", "2020-10-01t00:00:00.25z", "2020-10-01 00:00:00.123456+02:00"):
        assert (await dave.get("/api/audit-logs", params={"until": moment})).json()["items"] == []


async def resource_of(dave: httpx.AsyncClient, request_id: str) -> Any:
    async def found() -> list[Any]:
        rows = (await dave.get("/api/audit-logs", params={"request_id": request_id})).json()["items"]
        return [row["resource"] for row in rows]

    [resource] = await until(found)
    return resource


@pytest.mark.parametrize(
    ("user", "asked", "shown"),
    [(None, "7", "7"), ("carol", "8", "8"), ("bob", "x", "x"), ("bob", "x" * 300, "x" * 255), ("bob", "a%00b", "{id}")],
)
async def test_the_row_of_a_refused_request_names_the_id_asked_for(
    server: Running, dave: httpx.AsyncClient, token: Any, user: str | None, asked: str, shown: str
) -> None:
    async with server.client(token(user) if user else None) as client:
        answer = await client.get(f"/api/notes/{asked}")
    assert await resource_of(dave, answer.headers["x-request-id"]) == f"notes/{shown}"


@pytest.mark.parametrize(
    ("user", "asked", "shown"),
    [("carol", 7, "7"), ("bob", "x", "x"), ("bob", [1], "{id}"), ("bob", True, "{id}"), ("bob", 10**30, "{id}")],
)
async def test_the_row_of_a_refused_call_names_the_id_asked_for(
    server: Running, dave: httpx.AsyncClient, token: Any, user: str, asked: Any, shown: str
) -> None:
    async with server.socket(token(user)) as socket:
        error = (await socket.call("notes.get", id=asked))["error"]
    assert await resource_of(dave, error["data"]["request_id"]) == f"notes/{shown}"
