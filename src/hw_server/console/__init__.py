"""The web console at `/`: sign-in, calls over the socket, and a log of what went out and came in."""

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles

from hw_server.http.addresses import origin
from hw_server.settings import Settings


def add_console(app: FastAPI, settings: Settings) -> None:
    own = origin(settings.http.public_url)
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        # Older browsers do not take a socket of the page's own host for 'self'.
        f"connect-src 'self' {own.replace('http', 'ws', 1)} {origin(settings.oidc.issuer)}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    # Asked for again each time (304 where nothing changed): page, script and style are always of one version.
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    assets = StaticFiles(packages=[("hw_server.console", "assets")])

    async def asset(name: str, request: Request) -> Response:
        response = await assets.get_response(name, request.scope)
        response.headers.update(headers)
        return response

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await asset("index.html", request)

    @app.get("/console/configuration", include_in_schema=False)
    async def configuration() -> dict[str, str]:
        """What the page must know besides the provider's endpoints; `origin` is the one allowed to open sockets."""
        return {"client_id": settings.oidc.client_id, "origin": own}

    app.get("/console/{name}", include_in_schema=False)(asset)
