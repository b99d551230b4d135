"""The world outside: a small OpenID provider with keys of its own, that signs right and wrong tokens alike."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
ROLES = ["notes:read", "notes:write", "audit:read", "sessions:admin"]


class Provider:
    def __init__(self, port: int = 0) -> None:
        self.broken = False  # whether it answers nothing but 502
        self.keys = {"rsa": self.new_key(), "ec": ec.generate_private_key(ec.SECP256R1())}
        self.published = ["rsa", "ec"]
        self.fetches = self.descriptions = 0
        self.granted: list[str] = []
        self.denial: dict[str, str] = {}
        self.lifetime = 300  # of the tokens granted, seconds
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                if provider.broken:
                    self.send_error(502)
                elif path.endswith("/authorize"):
                    self.send_response(302)
                    self.send_header("Location", provider.authorize(dict(parse_qsl(query))))
                    self.end_headers()
                else:
                    self.reply(provider.document(self.path, self.headers["Host"]))

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.reply(provider.grant())

            def reply(self, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.issuer = f"http://127.0.0.1:{self.port}/realms/test"

    @classmethod
    @contextmanager
    def running(cls) -> "Iterator[Provider]":
        provider = cls()
        thread = threading.Thread(target=provider._http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield provider
        provider._http.shutdown()
        provider._http.server_close()
        thread.join()

    @staticmethod
    def new_key() -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, 2048)

    def settings(self) -> dict[str, str]:
        return {"HW_OIDC__ISSUER": self.issuer, "HW_OIDC__ROLES_CLAIM": "realm_access.roles"}

    def document(self, path: str, host: str) -> dict[str, Any]:
        if path.endswith("/.well-known/openid-configuration"):
            self.descriptions += 1
            # Like Keycloak in containers: what servers ask is named at the address that was asked.
            asked = f"http://{host}/realms/test"
            return {
                "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{asked}/token", "jwks_uri": f"{asked}/certs",
            }  # fmt: skip
        self.fetches += 1
        return {"keys": [self.public(kid) for kid in self.published]}

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser goes back to: everybody is let in, as ann, until `denial` says why not."""
        outcome = self.denial or {"code": uuid.uuid4().hex}
        return f"{query['redirect_uri']}?{urlencode({**outcome, 'state': query['state']})}"

    def grant(self) -> dict[str, Any]:
        """Tokens for any code and any refresh token."""
        token = self.token(exp=int(time.time()) + self.lifetime)
        self.granted.append(token)
        return {"access_token": token, "refresh_token": uuid.uuid4().hex, "expires_in": self.lifetime}

    def public(self, kid: str) -> dict[str, Any]:
        key = self.keys[kid].public_key()
        algorithm = RSAAlgorithm if isinstance(self.keys[kid], rsa.RSAPrivateKey) else ECAlgorithm
        return {**json.loads(algorithm.to_jwk(key)), "kid": kid, "use": "sig"}  # type: ignore[arg-type]

    def public_pem(self) -> bytes:
        return self.keys["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims as Keycloak makes them; a change to None leaves one out."""
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": "hw-api", "sub": "id-of-ann", "preferred_username": "ann", "typ": "Bearer",
            "azp": "hw-web", "iat": now, "exp": now + 300, "jti": uuid.uuid4().hex, "sid": uuid.uuid4().hex,
            "realm_access": {"roles": ROLES}, **changes,
        }  # fmt: skip
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, kid: str = "rsa", headers: dict[str, Any] | None = None, key: Any = None, **changes: Any) -> str:
        key = key or self.keys[kid]
        algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
        merged = {"kid": kid, **(headers or {})}
        shown = {name: value for name, value in merged.items() if value is not None}
        return jwt.encode(self.claims(**changes), key, algorithm, headers=shown)

    def logout_token(self, **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": "hw-web", "iat": now, "exp": now + 120, "jti": uuid.uuid4().hex,
            "sid": uuid.uuid4().hex, "events": {LOGOUT_EVENT: {}}, **changes,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.keys["rsa"], "RS256", headers={"kid": "rsa", "typ": "logout+jwt"})
