"""The real Keycloak 25, with the realm that the container imports."""

import json
import os
import shutil
from collections.abc import Iterator

import httpx
import jwt
import pytest
from playwright.sync_api import Browser

from hw_server.embedded import Stack
from hw_server.embedded import keycloak as real
from tests.browser import ask, open_console, sign_in_and_ask
from tests.conftest import Running, run_server, run_stack, sign_in, until

if shutil.which("mvn") is None and not os.environ.get("CI"):
    pytest.skip("Keycloak is fetched with Maven, which is not installed", allow_module_level=True)

pytestmark = pytest.mark.keycloak


@pytest.fixture(scope="module")
def keycloak() -> Iterator[Stack]:
    real.provide_java()
    with run_stack("keycloak") as stack:
        yield stack


@pytest.fixture(scope="module")
def running(keycloak: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_server(keycloak.environment(), tmp_path_factory.mktemp("log")) as server:
        yield server


def test_tokens_have_the_promised_claims(keycloak: Stack) -> None:
    claims = jwt.decode(sign_in(keycloak, "dave")["access_token"], options={"verify_signature": False})
    assert (claims["typ"], claims["azp"], claims["preferred_username"]) == ("Bearer", "hw-web", "dave")
    assert "hw-api" in ([claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"])
    assert {"audit:read", "sessions:admin"} <= set(claims["realm_access"]["roles"])
    assert claims["sid"]


@pytest.mark.parametrize(("user", "status"), [("carol", 200), ("dave", 200), ("alice", 403)])
async def test_users_have_their_roles(keycloak: Stack, running: Running, user: str, status: int) -> None:
    async with running.client(sign_in(keycloak, user)["access_token"]) as client:
        assert (await client.get("/api/audit-logs")).status_code == status
        assert (await client.get("/api/me")).json()["username"] == user


@pytest.mark.parametrize("kind", ["id_token", "refresh_token"])
async def test_other_tokens_are_refused(keycloak: Stack, running: Running, kind: str) -> None:
    async with running.client(sign_in(keycloak, "dave")[kind]) as client:
        assert (await client.get("/api/me")).status_code == 401


async def test_a_sign_out_at_keycloak_ends_the_session(keycloak: Stack, running: Running) -> None:
    signed_in = sign_in(keycloak, "alice")
    async with running.client(signed_in["access_token"]) as client, running.socket(signed_in["access_token"]) as socket:
        assert (await client.get("/api/me")).status_code == 200
        form = {"client_id": "hw-web", "refresh_token": signed_in["refresh_token"]}
        issuer = running.environment["HW_OIDC__ISSUER"]
        response = await client.post(
            f"{issuer}/protocol/openid-connect/logout", data=form, headers={"Authorization": ""}
        )
        assert response.status_code == 204
        assert await socket.closed() == (4403, "session_revoked")
        assert (await client.get("/api/me")).status_code == 401


async def test_a_user_ended_by_an_administrator(keycloak: Stack, running: Running) -> None:
    async with running.client(sign_in(keycloak, "bob")["access_token"]) as bob:
        sid = (await bob.get("/api/me")).json()["session_id"]

        async def listed() -> bool:
            return sid in [session["id"] for session in (await bob.get("/api/sessions")).json()["items"]]

        await until(listed)
        async with running.client(sign_in(keycloak, "dave")["access_token"]) as dave:
            assert (await dave.delete(f"/api/sessions/{sid}")).status_code == 204
        assert (await bob.get("/api/me")).status_code == 401


def test_exports_what_the_alerts_use(keycloak: Stack) -> None:
    text = httpx.get(f"http://127.0.0.1:{keycloak.ports.oidc + real.MANAGEMENT}/metrics").text
    assert 'jvm_memory_used_bytes{area="heap"' in text
    assert 'jvm_memory_max_bytes{area="heap"' in text


def test_the_api_page_signs_in(running: Running, browser: Browser) -> None:
    assert '"username": "alice"' in sign_in_and_ask(browser, running.environment["HW_HTTP__PUBLIC_URL"], "alice")


def test_the_console_signs_in_and_out(running: Running, browser: Browser) -> None:
    page = open_console(browser, running.environment["HW_HTTP__PUBLIC_URL"], "alice")
    assert '"username": "alice"' in ask(page, "me.get")
    page.click("#sign-out")
    page.click("#sign-in")
    page.wait_for_selector("input[name=username]")


def test_the_realm_file_stands_alone() -> None:
    realm = json.loads(real.REALM.read_text())
    assert "clientScopes" not in realm
    assert {user["username"] for user in realm["users"]} == {"alice", "bob", "carol", "dave"}


def test_another_origin_reaches_a_realm_that_is_there_already(keycloak: Stack) -> None:
    origin = "http://localhost:5173"
    query = {
        "response_type": "code", "client_id": "hw-web", "redirect_uri": f"{origin}/any/path", "scope": "openid",
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM", "code_challenge_method": "S256",
    }  # fmt: skip
    page = f"{keycloak.environment()['HW_OIDC__ISSUER']}/protocol/openid-connect/auth"
    assert httpx.get(page, params=query).status_code == 400
    process = Stack(keycloak.state, keycloak.ports, "keycloak", origins=[origin]).processes["keycloak"]
    process.spec.prepare()
    [copied] = keycloak.state.glob("keycloak-*/data/import/hw-realm.json")
    assert origin in json.loads(copied.read_text())["clients"][0]["webOrigins"]
    process.wait()
    assert httpx.get(page, params=query).status_code == 200
