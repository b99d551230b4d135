"""The API page in a real browser: sign-in by PKCE, then a request."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.browser import execute, sign_in_and_ask
from tests.conftest import Running, Serve, until


def test_signs_in_with_nanoidp(local: Running, browser: Browser) -> None:
    assert '"username": "alice"' in sign_in_and_ask(browser, local.environment["HW_HTTP__PUBLIC_URL"], "alice")


def test_sends_its_token_to_the_export(local: Running, token: Callable[[str], str], browser: Browser) -> None:
    headers = {"Authorization": f"Bearer {token('alice')}"}
    assert httpx.post(f"{local.url}/api/notes", headers=headers, json={"title": str(uuid.uuid4())}).status_code == 201
    response = execute(browser, local.environment["HW_HTTP__PUBLIC_URL"], "carol", "audit.export")
    with response.page.expect_download() as downloading:
        response.get_by_role("link", name="Download file").click()
    assert downloading.value.suggested_filename == "audit-logs.ndjson"
    rows = downloading.value.path().read_text().splitlines()
    assert "notes.create" in {json.loads(row)["action"] for row in rows}


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect", "/"])
def test_no_page_lets_foreign_scripts_in(local: Running, path: str) -> None:
    policy = httpx.get(f"{local.url}{path}").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_of_the_page_is_against_its_policy(local: Running, browser: Browser) -> None:
    console: list[str] = []
    sign_in_and_ask(browser, local.environment["HW_HTTP__PUBLIC_URL"], "alice", console=console)
    assert [text for text in console if "Content Security Policy" in text] == []


@pytest.mark.parametrize("off", ["HW_HTTP__DOCS", "HW_HTTP__CONSOLE"])
def test_pages_can_be_switched_off(serve: Serve, off: str) -> None:
    pages = {
        "HW_HTTP__DOCS": ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/openrpc.json", "/asyncapi.json"),
        "HW_HTTP__CONSOLE": ("/", "/console/console.js", "/console/configuration"),
    }
    with serve(**{off: "false"}) as running:
        for name, paths in pages.items():
            assert {httpx.get(f"{running.url}{path}").status_code for path in paths} == {404 if name == off else 200}


@pytest.mark.parametrize("path", ["/openapi.json", "/openrpc.json", "/asyncapi.json"])
async def test_a_document_counts_under_its_path(server: Running, path: str) -> None:
    mine = uuid.uuid4().hex
    async with server.client() as client:
        response = await client.get(path, headers={"X-Request-ID": mine})
    assert response.headers["content-type"] == "application/json"
    [line] = await until(lambda: server.lines_of(mine))
    assert line["route"] == path


async def test_methods_are_named_to_nobody_unknown_without_documents(
    serve: Serve, server: Running, token: Callable[[str], str]
) -> None:
    async with server.socket() as socket:
        assert (await socket.call("rpc.discover"))["result"]["methods"]
    with serve(HW_HTTP__DOCS="false") as running:
        async with running.socket() as stranger, running.socket(token("bob")) as bob:
            assert (await stranger.call("rpc.discover"))["error"]["code"] == -32001
            assert (await bob.call("rpc.discover"))["result"]["methods"]


def test_asks_for_no_client_secret(local: Running, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{local.url}/docs")
    page.click("button.authorize")
    expect(page.locator("#client_id_authorization_code")).to_be_visible()
    expect(page.locator("#client_secret_authorization_code")).to_be_hidden()


def test_shows_the_role_of_each_operation(local: Running) -> None:
    paths: dict[str, Any] = httpx.get(f"{local.url}/openapi.json").json()["paths"]
    for path, method, role, words, signs_in in (
        ("/api/notes", "post", "notes:write", "Needs the role `notes:write`.", True),
        ("/api/notes/count", "get", "public", "Public: needs no token.", False),
        ("/api/me", "get", "signed-in", "Needs any valid token.", True),
        ("/api/audit-logs/export", "get", "audit:read", "Needs the role `audit:read`.", True),
        ("/api/auth/backchannel-logout", "post", "public", "Public: needs no token.", False),
    ):
        operation = paths[path][method]
        assert (operation["x-role"], operation["description"].endswith(f"\n\n{words}")) == (role, True)
        assert ("security" in operation) == signs_in
    assert all("x-role" in operation for path in paths.values() for operation in path.values())
    methods = {method["name"]: method for method in httpx.get(f"{local.url}/openrpc.json").json()["methods"]}
    roles = [methods[name]["x-role"] for name in ("notes.create", "notes.count", "me.get")]
    assert roles == ["notes:write", "public", "signed-in"]


def test_a_patch_publishes_no_defaults(local: Running) -> None:
    schemas = httpx.get(f"{local.url}/openapi.json").json()["components"]["schemas"]
    methods = {method["name"]: method for method in httpx.get(f"{local.url}/openrpc.json").json()["methods"]}
    properties = [*schemas["NotePatch"]["properties"].values()]
    properties += [param["schema"] for param in methods["notes.update"]["params"]]
    assert len(properties) == 7
    assert not [item for item in properties if "default" in item]


def test_the_sign_in_page_of_nanoidp_loads_nothing_from_elsewhere(local: Running, browser: Browser) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{local.environment['HW_HTTP__PUBLIC_URL']}/")
    page.click("#sign-in")
    page.fill("input[name=username]", "nobody")
    page.fill("input[name=password]", "wrong")
    page.press("input[name=password]", "Enter")
    expect(page.locator(".alert")).to_be_visible()
    expect(page.locator("button[type=submit]").last).to_have_css("background-color", "rgb(13, 110, 253)")
    assert [url for url in asked if not url.startswith(("http://localhost:", "http://127.0.0.1:"))] == []
