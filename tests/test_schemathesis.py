"""What the OpenAPI document promises, tried with thousands of valid and invalid requests made from it."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Running, Serve
from tests.provider import Provider

# Not among them: that all valid data is accepted (a cursor is opaque, a logout token is signed), that undeclared methods are
# refused (a path of one operation may also be an id of another).
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,ignored_auth"
)
OPTIONS = [
    "--phases", "examples,coverage,fuzzing", "--checks", CHECKS, "--seed", "20261124", "--max-examples", "20", "--max-time", "30",
    "--generation-database", "none", "--continue-on-failure", "--no-color",
]  # fmt: skip
UNLIMITED = {"HW_RATELIMIT__HTTP_PER_MINUTE": "10000000", "HW_LOG__REQUESTS": "false"}


def tried(running: Running, token: str, folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json", *OPTIONS]
    header = f"Authorization: Bearer {token}"
    result = subprocess.run([*command, "--header", header], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-2_000:]
    assert re.search(r"\d{3,} generated", result.stdout), result.stdout
    assert "Traceback" not in running.log_file.read_text()


@pytest.mark.parametrize("user", ["bob", "dave"])
def test_a_server_holds_to_its_document(serve: Serve, token: Callable[[str], str], tmp_path: Path, user: str) -> None:
    """As one who may only read notes, and as one who may do everything."""
    with serve(**UNLIMITED) as running:
        tried(running, token(user), tmp_path)


def test_the_features_that_are_shipped_hold_to_their_document(serve: Serve, provider: Provider, tmp_path: Path) -> None:
    roles = ["authors:read", "authors:write", "audit:read", "sessions:admin"]
    shipped = {"HW_FEATURES": "hw_server.features:FEATURES", **provider.settings()}
    with serve(**UNLIMITED, **shipped) as running:
        tried(running, provider.token(realm_access={"roles": roles}), tmp_path)
