"""API documents at `/docs` with sign-in by PKCE; every asset is served from here."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from fastapi.responses import HTMLResponse, Response
from fastapi.security import OpenIdConnect
from pydantic_core import to_json
from starlette.staticfiles import StaticFiles

from hw_server.auth.jwks import SigningKeys
from hw_server.http.addresses import origin
from hw_server.http.problems import problem_schemas
from hw_server.http.secured_routes import SIGN_IN
from hw_server.operations import PUBLIC, role_in_words
from hw_server.settings import OidcSettings

REDIRECT = "/docs/oauth2-redirect"
DISCOVERY = "/docs/openid-configuration"
# A public client has no secret, but Swagger UI asks for one with every authorization code.
INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.S)
WITHOUT_SECRET = b"<style>.auth-container .wrapper:has([id^=client_secret_]) { display: none }</style>"


def sign_in_scheme() -> OpenIdConnect:
    return OpenIdConnect(
        openIdConnectUrl=DISCOVERY,
        scheme_name=SIGN_IN,
        description="Sign in at the identity provider (authorization code with PKCE).",
        auto_error=False,
    )


def add_discovery(app: FastAPI, settings: OidcSettings, keys: SigningKeys) -> None:
    @app.get(DISCOVERY, include_in_schema=False)
    async def discovery() -> dict[str, Any]:
        """The provider's OpenID configuration, reduced to what the pages use."""
        discovery = keys.discovery or await keys.discover()
        fields = {name: discovery[name] for name in ("issuer", "authorization_endpoint", "token_endpoint")}
        fields |= {name: discovery[name] for name in ("end_session_endpoint",) if name in discovery}
        if settings.internal_url:
            # Keycloak names its token endpoint at the address of the request, which browsers cannot reach.
            internal = settings.internal_url.rstrip("/")
            fields = {name: value.replace(internal, settings.issuer, 1) for name, value in fields.items()}
        return {**fields, "grant_types_supported": ["authorization_code"], "scopes_supported": ["openid"]}


def add_documents(app: FastAPI, settings: OidcSettings, others: Mapping[str, Callable[[], bytes]]) -> None:
    """The API page with OpenAPI; `others` are further documents by their paths."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = described()
            document["components"]["schemas"].update(problem_schemas())
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                if "x-role" not in operation:  # a route beside `/api`, such as `/health`
                    operation["x-role"] = PUBLIC
                    operation["description"] += f"\n\n{role_in_words(None)}"
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")

    def page_response(page: bytes) -> HTMLResponse:
        """Scripts and styles within the page run by their digests (CSP Level 3, section 8.3)."""
        allowed: dict[str, list[str]] = {"script": ["'self'"], "style": ["'self'"]}
        for kind, text in INLINE.findall(page):
            digest = b64encode(hashlib.sha256(text).digest()).decode()
            allowed[kind.decode()].append(f"'sha256-{digest}'")
        policy = (
            "default-src 'none'; img-src 'self' data:; "
            f"style-src {' '.join(allowed['style'])}; script-src {' '.join(allowed['script'])}; "
            f"connect-src 'self' {origin(settings.issuer)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        # The sign-in window hands its code back to the page that opened it.
        headers = {"Content-Security-Policy": policy, "Cross-Origin-Opener-Policy": "unsafe-none"}
        return HTMLResponse(page, headers=headers)

    for path, describe in {"/openapi.json": lambda: to_json(app.openapi()), **others}.items():
        app.get(path, include_in_schema=False)(_document(cache(describe)))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="hw-server API",
            oauth2_redirect_url=REDIRECT,
            init_oauth={
                "clientId": settings.client_id,
                "usePkceWithAuthorizationCodeGrant": True,
                "scopes": "openid",
            },
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
            swagger_ui_parameters={"persistAuthorization": False, "tryItOutEnabled": True},
        )
        return page_response(bytes(page.body).replace(b"</head>", WITHOUT_SECRET + b"</head>"))

    @app.get(REDIRECT, include_in_schema=False)
    async def redirect() -> HTMLResponse:
        return page_response(bytes(get_swagger_ui_oauth2_redirect_html().body))


def _document(describe: Callable[[], bytes]) -> Callable[[], Any]:
    async def document() -> Response:
        return Response(describe(), media_type="application/json")

    return document
