"""Who gets in: every bad token is refused with 401 and a code, on HTTP and on the socket."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable

import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.conftest import Running, until
from tests.provider import Provider

STRANGER = rsa.generate_private_key(65537, 2048)


def unsigned(provider: Provider) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none', 'typ': 'JWT', 'kid': 'rsa'})}.{part(provider.claims())}."


def hmac_with_public_key(provider: Provider) -> str:
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "rsa"}).encode()).rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(provider.claims()).encode()).rstrip(b"=")
    signature = hmac.new(provider.public_pem(), header + b"." + body, hashlib.sha256).digest()
    return b".".join((header, body, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


def forged_jwk(provider: Provider) -> str:
    stranger = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(STRANGER.public_key()))
    return provider.token(key=STRANGER, headers={"jwk": {**stranger, "kid": "rsa"}})


def in_seconds(seconds: int) -> int:
    return int(time.time()) + seconds


UNUSABLE = {"NUL": "a\x00b", "lone surrogate": "a\ud800b"}  # in PostgreSQL; in UTF-8


def with_text(claim: str, text: str) -> Callable[[Provider], str]:
    changes = {claim: {"roles": ["notes:read", text]} if claim == "realm_access" else text}
    return lambda provider: provider.token(**changes)


BAD: dict[str, tuple[str, Callable[[Provider], str]]] = {
    "garbage": ("malformed", lambda p: "garbage"),
    "three garbage parts": ("malformed", lambda p: "a.b.c"),
    "expired": ("expired", lambda p: p.token(iat=in_seconds(-900), exp=in_seconds(-600))),
    "not yet valid": ("not_yet_valid", lambda p: p.token(nbf=in_seconds(900))),
    "wrong issuer": ("wrong_issuer", lambda p: p.token(iss="http://elsewhere/realms/test")),
    "wrong audience": ("wrong_audience", lambda p: p.token(aud="account")),
    "no audience": ("missing_claim", lambda p: p.token(aud=None)),
    "alg none": ("bad_algorithm", unsigned),
    "HS256 with the public key": ("bad_algorithm", hmac_with_public_key),
    "unknown kid": ("unknown_key", lambda p: p.token(headers={"kid": "nobody"})),
    "no kid": ("unknown_key", lambda p: p.token(headers={"kid": None})),
    "another's key": ("bad_signature", lambda p: p.token(key=STRANGER)),
    "forged jwk": ("bad_signature", forged_jwk),
    "forged jku": ("bad_signature", lambda p: p.token(key=STRANGER, headers={"jku": "http://127.0.0.1:1/keys"})),
    "ID token": ("not_an_access_token", lambda p: p.token(typ="ID")),
    "ID token of another provider": ("not_an_access_token", lambda p: p.token(typ=None, nonce="n", at_hash="h")),
    "refresh token": ("not_an_access_token", lambda p: p.token(typ="Refresh")),
    "logout token": ("missing_claim", lambda p: p.logout_token()),
    "no expiry": ("missing_claim", lambda p: p.token(exp=None)),
    "no subject": ("missing_claim", lambda p: p.token(sub=None)),
    **{
        f"{kind} in {claim}": ("malformed", with_text(claim, text))
        for kind, text in UNUSABLE.items()
        for claim in ("sub", "sid", "jti", "preferred_username", "azp", "realm_access")
    },
    "a sid that would be cut": ("malformed", lambda p: p.token(sid="s" * 256)),
    "a sub that would be cut": ("malformed", lambda p: p.token(sub="s" * 256)),
    "an expiry without end": ("malformed", lambda p: p.token(exp=10**400)),
    "junk of 10 KiB": ("too_long", lambda p: "x" * 10_240),
}


@pytest.mark.parametrize("case", BAD)
async def test_refuses_on_http(guarded: Running, provider: Provider, case: str) -> None:
    reason, make = BAD[case]
    async with guarded.client(make(provider)) as client:
        response = await client.get("/api/notes")
    assert response.status_code == 401
    assert response.json()["code"] == "unauthenticated"
    assert (
        response.headers["WWW-Authenticate"]
        == f'Bearer realm="hw", error="invalid_token", error_description="{reason}"'
    )


@pytest.mark.parametrize("case", BAD)
async def test_refuses_on_the_socket(guarded: Running, provider: Provider, case: str) -> None:
    async with guarded.socket() as socket:
        response = await socket.call("session.authenticate", token=BAD[case][1](provider))
        assert response["error"]["code"] == -32001
        assert await socket.closed() == (4401, "unauthenticated")


@pytest.mark.parametrize("credentials", ["Basic YTpi", "Bearer", "token"])
async def test_refuses_other_schemes(guarded: Running, credentials: str) -> None:
    async with guarded.client() as client:
        response = await client.get("/api/notes", headers={"Authorization": credentials})
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


async def test_asks_for_a_token(guarded: Running) -> None:
    async with guarded.client() as client:
        response = await client.get("/api/me")
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, 'Bearer realm="hw"')


async def test_refuses_the_handshake_with_a_bad_header(guarded: Running) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with guarded.socket("garbage"):
            pass
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("kid", ["rsa", "ec"])
async def test_accepts_both_algorithms(guarded: Running, provider: Provider, kid: str) -> None:
    async with guarded.client(provider.token(kid)) as client:
        assert (await client.get("/api/me")).json()["username"] == "ann"


@pytest.mark.parametrize("changes", [{"aud": ["account", "hw-api"]}, {"preferred_username": None}, {"sid": None}])
async def test_accepts_other_shapes(guarded: Running, provider: Provider, changes: dict[str, object]) -> None:
    async with guarded.client(provider.token(**changes)) as client:
        assert (await client.get("/api/me")).status_code == 200


async def test_a_missing_role_is_forbidden(guarded: Running, provider: Provider) -> None:
    token = provider.token(realm_access={"roles": ["notes:read"]})
    async with guarded.client(token) as client, guarded.socket(token) as socket:
        http = await client.post("/api/notes", json={"title": "x"})
        rpc = await socket.call("notes.create", title="x")
    assert (http.status_code, http.json()["code"]) == (403, "forbidden")
    assert (rpc["error"]["code"], rpc["error"]["data"]["code"]) == (-32003, "forbidden")


@pytest.mark.parametrize(
    ("claim", "roles"),
    [
        ({"roles": ["notes:read"]}, ["notes:read"]),
        ({"roles": ["notes:read", 1, None, ["audit:read"]]}, ["notes:read"]),
        ({"roles": "notes:read"}, []),
        ({"roles": {"notes:read": True}}, []),
        ({"roles": None}, []),
        ({"notes:read": True}, []),
        (["notes:read"], []),
        ("notes:read", []),
    ],
)
async def test_only_a_list_of_names_gives_roles(
    guarded: Running, provider: Provider, claim: object, roles: list[str]
) -> None:
    async with guarded.client(provider.token(realm_access=claim)) as client:
        assert (await client.get("/api/me")).json()["roles"] == roles
        assert (await client.get("/api/notes")).status_code == (200 if roles else 403)


async def test_fetches_keys_once_for_many_unknown_kids(serve: Callable[..., object]) -> None:
    with Provider.running() as provider, serve(**provider.settings()) as running:  # type: ignore[attr-defined]
        async with running.client() as client:
            for index in range(10):
                bad = provider.token(headers={"kid": f"unknown-{index}"})
                assert (await client.get("/api/me", headers={"Authorization": f"Bearer {bad}"})).status_code == 401
    assert provider.fetches <= 2


async def test_a_new_key_is_taken_at_once(serve: Callable[..., object]) -> None:
    with Provider.running() as provider:
        provider.published = ["rsa"]
        with serve(**provider.settings(), HW_OIDC__JWKS_COOLDOWN="3600") as running:  # type: ignore[attr-defined]
            async with running.client() as client:
                for kind in ("rsa", "ec"):
                    provider.published = list({"rsa", kind})
                    headers = {"Authorization": f"Bearer {provider.token(kind)}"}
                    assert (await client.get("/api/me", headers=headers)).status_code == 200


async def test_a_new_key_is_found_after_the_cooldown(serve: Callable[..., object]) -> None:
    with Provider.running() as provider:
        provider.published = ["rsa"]
        with serve(**provider.settings(), HW_OIDC__JWKS_COOLDOWN="0.2") as running:  # type: ignore[attr-defined]
            async with running.client(provider.token("ec")) as client:
                assert (await client.get("/api/me")).status_code == 401
                provider.published = ["rsa", "ec"]

                async def accepted() -> bool:
                    return (await client.get("/api/me")).status_code == 200

                await until(accepted)


async def test_tokens_never_reach_the_log(guarded: Running, provider: Provider) -> None:
    good, bad = provider.token(), provider.token(aud="account")
    for token, status in ((good, 200), (bad, 401)):
        async with guarded.client(token) as client, guarded.socket() as socket:
            await socket.call("session.authenticate", token=token)
            response = await client.get("/api/me")
        [line] = await until(lambda response=response: guarded.lines_of(response.headers["x-request-id"]))
        assert line["status"] == status
    text = guarded.log_file.read_text()
    assert not [part for token in (good, bad) for part in token.split(".")[1:] if part in text]
