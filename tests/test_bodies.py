"""What clients may send over HTTP: bad input gets a clear problem, never a 500."""

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.conftest import Running, Serve, until

JSON = {"Content-Type": "application/json"}
HANDSHAKE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}  # fmt: skip
BODIES: dict[str, tuple[int, str, bytes]] = {
    "not JSON": (400, "malformed_request", b"{name: x}"),
    "nothing": (400, "malformed_request", b""),
    "invalid UTF-8": (400, "malformed_request", b'{"title": "\xff\xfe"}'),
    "a lone surrogate": (400, "malformed_request", b'{"title": "\\ud800"}'),
    "deep nesting": (400, "malformed_request", b'{"title":' + b"[" * 4_000 + b"]" * 4_000 + b"}"),
    "deeper nesting": (413, "payload_too_large", b'{"title":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "lists without end": (413, "payload_too_large", b"[" + b"[]," * 100_000 + b"[]]"),
    "members without end": (413, "payload_too_large", b'{"":0' + b',"":0' * 100_000 + b"}"),
    "many unknown fields": (
        422,
        "validation_error",
        b'{"0":0' + b"".join(b',"%d":0' % i for i in range(1, 4_000)) + b"}",
    ),
    "NaN": (400, "malformed_request", b'{"title": NaN}'),
    "an array": (422, "validation_error", b"[]"),
    "null": (422, "validation_error", b"null"),
    "a wrong type": (422, "validation_error", b'{"title": 7}'),
    "a date as a number": (422, "validation_error", b'{"title": "x", "due": 0}'),
    "an unknown field": (422, "validation_error", b'{"title": "x", "admin": true}'),
    "a missing field": (422, "validation_error", b'{"text": "x"}'),
    "NUL": (422, "validation_error", b'{"title": "a\\u0000b"}'),
    "a line break in a title": (422, "validation_error", b'{"title": "a\\nb"}'),
    "only spaces": (422, "validation_error", b'{"title": "   "}'),
    "a title too long": (422, "validation_error", b'{"title": "' + b"x" * 201 + b'"}'),
    "no date": (422, "validation_error", b'{"title": "x", "due": "yesterday"}'),
    "a year past the calendar": (422, "validation_error", b'{"title": "x", "due": "99999-01-01"}'),
    "a huge number": (422, "validation_error", b'{"title": ' + b"9" * 4000 + b"}"),
    "too large": (413, "payload_too_large", b'{"title": "' + b"x" * 1_100_000 + b'"}'),
}


@pytest.mark.parametrize("case", BODIES)
async def test_refuses_the_body(alice: httpx.AsyncClient, case: str) -> None:
    status, code, body = BODIES[case]
    response = await alice.post("/api/notes", content=body, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    if code == "validation_error":
        assert response.json()["errors"]


async def test_names_what_is_wrong_in_the_address_and_in_the_body(alice: httpx.AsyncClient) -> None:
    response = await alice.put("/api/notes/0", json={"title": "", "due": 0})
    assert [problem["field"] for problem in response.json()["errors"]] == ["id", "title", "due"]
    whole = await alice.put("/api/notes/1", json=[])
    assert [problem["field"] for problem in whole.json()["errors"]] == ["body"]
    both = await alice.get("/api/notes", params={"page": 1, "cursor": "x"})
    assert [problem["field"] for problem in both.json()["errors"]] == ["query"]


async def test_a_body_without_a_type_is_json(alice: httpx.AsyncClient) -> None:
    made = await alice.post("/api/notes", content=json.dumps({"title": str(uuid.uuid4())}).encode())
    large = await alice.post("/api/notes", content=b"[" + b"0," * 10_000 + b"0]")
    assert (made.status_code, large.status_code) == (201, 413)


async def test_refuses_chunks_past_the_limit(alice: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 65_536

    response = await alice.post("/api/notes", content=chunks(), headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("body", [b"&" * 2_000, b"logout_token=x" + b"&" * 2_000, b"logout_token=" + b"%41" * 30_000])
async def test_forms_have_a_limit_of_their_own(server: Running, body: bytes) -> None:
    """Their parser takes a second for a MiB of separators."""
    form = {"Content-Type": "Application/x-www-form-urlencoded; charset=utf-8"}
    async with server.client() as client:
        response = await client.post("/api/auth/backchannel-logout", content=body, headers=form)
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


async def test_refuses_other_media_types(alice: httpx.AsyncClient) -> None:
    response = await alice.post("/api/notes", data={"title": "x"})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


PATHS = [
    ("GET", "/api/notes/abc", 422),
    ("GET", "/api/notes/0", 422),
    ("GET", f"/api/notes/{2**63}", 422),
    ("GET", f"/api/notes/{10**400}", 422),
    ("GET", f"/api/notes/{2**63 - 1}", 404),
    ("GET", "/api/notes/1?x=1", 422),
    ("GET", "/api/notes?per_page=0", 422),
    ("GET", "/api/notes?per_page=101", 422),
    ("GET", "/api/notes?page=1&cursor=WzFd", 422),
    ("GET", "/api/notes?cursor=%00", 422),
    ("GET", "/api/notes?cursor=WyJhIl0", 422),
    ("GET", "/api/notes?cursor=WzEsMl0", 422),
    ("GET", "/api/notes?cursor=Wzk5OTk5OTk5OTk5OTk5OTk5OTk5OTld", 422),
    ("GET", "/api/notes?title=a%00b", 422),
    ("GET", "/api/notes?title=%ff", 400),
    ("GET", "/api/notes?sort=password", 422),
    ("GET", "/api/notes?unknown=1", 422),
    ("GET", "/api/nothing", 404),
    ("GET", "/nothing", 404),
    ("PATCH", "/api/notes", 405),
    ("DELETE", "/health", 405),
    ("TRACE", "/api/notes", 405),
]
CODES = {400: "malformed_request", 404: "not_found", 405: "method_not_allowed", 422: "validation_error"}


@pytest.mark.parametrize(("method", "path", "status"), PATHS)
async def test_refuses_the_address(alice: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    response = await alice.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, CODES[status])
    if status == 405:
        assert response.headers["allow"]


async def test_a_wrong_method_names_the_right_ones(alice: httpx.AsyncClient) -> None:
    assert (await alice.patch("/api/notes")).headers["allow"] == "GET, HEAD, POST"
    assert (await alice.post("/api/notes/1")).headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT"


@pytest.mark.parametrize("path", ["/api/notes?per_page=1", "/api/notes/0", "/health", "/health/live"])
async def test_head_answers_as_get_without_a_body(alice: httpx.AsyncClient, path: str) -> None:
    get, head = await alice.get(path), await alice.head(path)
    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert head.content == b""


async def test_a_client_that_goes_away_is_no_defect(serve: Serve, token: Callable[[str], str]) -> None:
    with serve() as running, socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1]))) as raw:
        head = f"POST /api/notes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token('alice')}\r\nContent-Length: 99"
        raw.sendall(f"{head}\r\nX-Request-ID: half-a-body\r\n\r\n{{".encode())

        async def begun() -> bool:
            """It, besides the request for the metrics themselves."""
            return (await running.metrics())["http_requests_in_progress"] == 2

        await until(begun)
        raw.close()
        [line] = await until(lambda: running.lines_of("half-a-body"))
        assert (line["event"], line["status"]) == ("request", 499)


async def test_two_creates_at_once_make_one(alice: httpx.AsyncClient) -> None:
    body = {"title": f"twin {uuid.uuid4()}"}
    responses = await asyncio.gather(*(alice.post("/api/notes", json=body) for _ in range(8)))
    assert sorted(response.status_code for response in responses) == [201] + [409] * 7
    assert {response.json().get("code") for response in responses} == {None, "conflict"}


async def test_believes_no_untrusted_proxy(server: Running, dave: httpx.AsyncClient) -> None:
    response = await dave.get("/api/me", headers={"X-Forwarded-For": "203.0.113.9"})
    [line] = await until(lambda: server.lines_of(response.headers["x-request-id"]))
    assert line["client_ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("nonsense", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_believes_trusted_proxies(proxied: Running, forwarded: str, seen: str) -> None:
    async with proxied.client() as client:
        response = await client.get("/api/me", headers={"X-Forwarded-For": forwarded})
    [line] = await until(lambda: proxied.lines_of(response.headers["x-request-id"]))
    assert line["client_ip"] == seen


async def test_a_page_may_send_what_the_api_reads(proxied: Running) -> None:
    headers = "authorization,content-type,last-event-id,x-request-id"
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": headers}
    async with proxied.client() as client:
        response = await client.options("/api/topics/events", headers={"Origin": "https://app.example.org", **asked})
    assert response.status_code == 200


async def test_cors_is_an_allow_list(proxied: Running) -> None:
    async with proxied.client() as client:
        ours = await client.get("/api/me", headers={"Origin": "https://app.example.org"})
        theirs = await client.get("/api/me", headers={"Origin": "https://evil.example.org"})
    assert ours.status_code == theirs.status_code == 401
    assert ours.headers["access-control-allow-origin"] == "https://app.example.org"
    assert "access-control-allow-origin" not in theirs.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [("api.example.org", 401), ("x.apps.example.org:443", 401), ("evil.org", 400), ("api.example.org.evil.org", 400)],
)
async def test_answers_for_its_own_hosts_only(proxied: Running, host: str, status: int) -> None:
    async with proxied.client() as client:
        response = await client.get("/api/me", headers={"Host": host})
        handshake = await client.get("/web", headers={**HANDSHAKE, "Host": host, "Authorization": "Bearer x"})
    assert (response.status_code, handshake.status_code) == (status, status)
    assert "evil" not in response.text + handshake.text


async def test_a_host_header_changes_nothing(server: Running) -> None:
    async with server.client() as client:
        response = await client.get("/openapi.json", headers={"Host": "evil.org"})
        redirected = await client.get("/api/me/", headers={"Host": "evil.org"})
    assert "evil.org" not in response.text
    assert (redirected.status_code, "location" in redirected.headers) == (404, False)


def test_survives_what_is_not_http(server: Running) -> None:
    for junk in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20) as raw:
            raw.sendall(junk)
            assert not raw.recv(4096).startswith(b"HTTP/1.1 5")
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX:", b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /he"])
def test_waits_for_a_head_only_so_long(serve: Serve, sent: bytes) -> None:
    with serve(HW_HTTP__HEADER_TIMEOUT="0.5") as running:
        with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1])), timeout=10) as raw:
            raw.sendall(sent)
            while raw.recv(4096):
                continue
        assert 'http_refused_headers_total{reason="late"} 1.0' in httpx.get(f"{running.url}/metrics").text


def test_takes_no_head_without_end(serve: Serve) -> None:
    with serve() as running:
        with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1])), timeout=10) as raw:
            raw.sendall(b"GET /health HTTP/1.1\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    raw.sendall(b"X-Filler: " + b"x" * 8000 + b"\r\n")
                raise AssertionError("eight megabytes were taken")
        assert 'http_refused_headers_total{reason="too_large"} 1.0' in httpx.get(f"{running.url}/metrics").text


@pytest.fixture(scope="module")
def proxied(serve: object) -> object:
    with serve(  # type: ignore[operator]
        HW_HTTP__TRUSTED_PROXIES="127.0.0.0/8,10.0.0.0/8",
        HW_HTTP__CORS_ORIGINS="https://app.example.org",
        HW_HTTP__ALLOWED_HOSTS="127.0.0.1,api.example.org,*.apps.example.org",
    ) as running:
        yield running
