"""`hw token`: an access token of a development user."""

from typing import Annotated
from urllib.parse import urlsplit

import typer

from hw_server.cli.serve import settings_or_exit


def _users() -> list[str]:
    from hw_server.embedded.users import USERS

    return list(USERS)


def token(
    user: Annotated[
        str,
        typer.Argument(help="User name; development users' passwords are their names.", autocompletion=_users),
    ],
    password: Annotated[
        str | None, typer.Option(help="Password, where it is not the name.", envvar="HW_PASSWORD")
    ] = None,
) -> None:
    """Print a fresh access token and nothing else (password grant, for development)."""
    import httpx

    from hw_server.cli.stack import running_environment

    settings = settings_or_exit(running_environment())
    base = settings.oidc.internal_url or settings.oidc.issuer
    proxied = urlsplit(base).hostname not in ("localhost", "127.0.0.1", "::1")
    form = {
        "grant_type": "password",
        "client_id": settings.oidc.client_id,
        "username": user,
        "password": password or user,
        "scope": "openid",
    }
    try:
        discovered = (
            httpx.get(f"{base}/.well-known/openid-configuration", timeout=5, trust_env=proxied)
            .raise_for_status()
            .json()
        )
        endpoint = discovered["token_endpoint"].replace(settings.oidc.issuer, base, 1)
        response = httpx.post(endpoint, data=form, timeout=10, trust_env=proxied)
    except (httpx.HTTPError, ValueError, KeyError):
        typer.echo(f"the identity provider at {base} does not answer; start it with `make up`", err=True)
        raise typer.Exit(1) from None
    if response.status_code != 200:
        reason = (
            response.json().get("error_description", "") if "json" in response.headers.get("content-type", "") else ""
        )
        typer.echo(f"the identity provider refused {user}: {reason or response.status_code}", err=True)
        raise typer.Exit(1)
    typer.echo(response.json()["access_token"])
