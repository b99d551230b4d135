"""NanoIDP: a small real OpenID provider. Its keys and settings live in the state folder."""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic_core import to_json

from hw_server.embedded.process import ProcessSpec, serves
from hw_server.embedded.users import AUDIENCE, CLIENT

PROGRAM = Path(__file__).with_name("nanoidp_server.py")
# Compared letter by letter: the API documents, the console and a front end, a front end with a route for it.
REDIRECTS = ("/docs/oauth2-redirect", "/", "/callback")


def spec(
    state: Path, port: int, app_port: int, users: Mapping[str, tuple[str, ...]], origins: Sequence[str] = ()
) -> ProcessSpec:
    folder = state / "nanoidp"
    issuer = f"http://127.0.0.1:{port}"
    pages = [f"http://{host}:{app_port}" for host in ("localhost", "127.0.0.1")]
    # JSON is YAML.
    settings = to_json(_settings(folder, port, issuer, [*pages, *origins]), indent=2)
    accounts = to_json(_users(users), indent=2)

    def prepare() -> None:
        (folder / "keys").mkdir(parents=True, exist_ok=True)
        (folder / "settings.yaml").write_bytes(settings)
        (folder / "users.yaml").write_bytes(accounts)

    return ProcessSpec(
        name="nanoidp",
        port=port,
        # By its path, so that a copy of the project runs its own; -P, as `nanoidp` is also the name of this file.
        command=[sys.executable, "-P", str(PROGRAM), str(folder), str(port)],
        environment={"PATH": os.environ.get("PATH", ""), "PYTHONDONTWRITEBYTECODE": "1"},
        ready=lambda: serves(f"{issuer}/.well-known/openid-configuration"),
        prepare=prepare,
        option="--oidc-port",
        folder=state,
        started_from={
            "program": hashlib.sha256(PROGRAM.read_bytes()).hexdigest(),
            "settings": hashlib.sha256(settings + accounts).hexdigest(),
        },
    )


def _settings(folder: Path, port: int, issuer: str, pages: list[str]) -> dict[str, object]:
    return {
        "config_version": 1,
        "server": {"host": "127.0.0.1", "port": port},
        "oauth": {
            "issuer": issuer,
            "audience": AUDIENCE,
            "token_expiry_minutes": 60,
            "clients": [
                {
                    "client_id": CLIENT,
                    "client_secret": "",
                    "token_endpoint_auth_method": "none",
                    "description": "hw-server API documents and console",
                    "redirect_uris": [f"{page}{path}" for page in pages for path in REDIRECTS],
                }
            ],
        },
        "jwt": {"algorithm": "RS256", "keys_dir": str(folder / "keys")},
        "cors_allowed_origins": pages,
        "session": {"enforce_password_check": True, "secret_key": "hw-dev"},
        "logging": {"level": "WARNING", "verbose_logging": False, "log_token_requests": False},
        "authority_prefixes": {},
    }


def _users(users: Mapping[str, tuple[str, ...]]) -> dict[str, object]:
    entries = {
        name: {"password": name, "email": f"{name}@example.org", "roles": list(roles)} for name, roles in users.items()
    }
    return {"config_version": 1, "users": entries}
