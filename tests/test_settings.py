"""Settings: each bad one is refused by its name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hw_server.settings import Environment, SettingsError, load

BAD = [
    ("HW_HTTP__PORT", "99999", "http.port"),
    ("HW_HTTP__PORT", "http", "http.port"),
    ("HW_HTTP__WORKERS", "0", "http.workers"),
    ("HW_HTTP__TRUSTED_PROXIES", "10.0.0.0/99", "http.trusted_proxies"),
    ("HW_HTTP__CORS_ORIGINS", "example.org", "http.cors_origins"),
    ("HW_HTTP__ALLOWED_HOSTS", "api.example.org,*", "http.allowed_hosts"),
    ("HW_HTTP__ALLOWED_HOSTS", "https://api.example.org", "http.allowed_hosts"),
    ("HW_HTTP__ALLOWED_HOSTS", "api.example.org:8000", "http.allowed_hosts"),
    ("HW_HTTP__PUBLIC_URL", "localhost", "http.public_url"),
    ("HW_DATABASE__URL", "mysql://x", "database.url"),
    ("HW_DATABASE__URL", "postgresql://[::1", "database.url"),
    ("HW_DATABASE__POOL_MAX", "0", "database.pool_max"),
    ("HW_REDIS__URL", "http://x", "redis.url"),
    ("HW_REDIS__AUTH_DB", "0", "redis.auth_db"),
    ("HW_OIDC__ISSUER", "hw", "oidc.issuer"),
    ("HW_OIDC__ISSUER", "https://x/", "oidc.issuer"),
    ("HW_OIDC__AUDIENCE", "", "oidc.audience"),
    ("HW_OIDC__JWKS_MAX_STALE", "10", "oidc.jwks_max_stale"),
    ("HW_RATELIMIT__ON_REDIS_DOWN", "maybe", "ratelimit.on_redis_down"),
    ("HW_WS__MAX_BATCH", "-1", "ws.max_batch"),
    ("HW_AUDIT__RETENTION_MONTHS", "0", "audit.retention_months"),
    ("HW_LOG__LEVEL", "loud", "log.level"),
    ("HW_LOG__FORMAT", "xml", "log.format"),
    ("HW_ENVIRONMENT", "staging", "environment"),
    ("HW_NO_SUCH", "1", "no_such"),
    ("HW_OIDC__ISUER", "https://x", "oidc.isuer"),
    ("HW_DATABASE__PASSWORD_FILE", "/does/not/exist", "database.password"),
]
PRODUCTION = {
    "HW_ENVIRONMENT": "production",
    "HW_OIDC__ISSUER": "https://id.example.org/realms/hw",
    "HW_HTTP__PUBLIC_URL": "https://api.example.org",
    "HW_HTTP__ALLOWED_HOSTS": "api.example.org",
    "HW_DATABASE__URL": "postgresql://hw@db/hw_db",
    "HW_DATABASE__PASSWORD": "a-long-secret-of-its-own",
    "HW_REDIS__PASSWORD": "another-long-secret",
    "HW_OIDC__ON_REDIS_DOWN": "closed",
}


@pytest.mark.parametrize(("variable", "value", "name"), BAD)
def test_refuses_by_name(variable: str, value: str, name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({variable: value})
    assert [problem.partition(":")[0].partition(".0")[0] for problem in refused.value.problems] == [name]


def test_names_every_problem() -> None:
    with pytest.raises(SettingsError) as refused:
        load({"HW_HTTP__PORT": "x", "HW_LOG__LEVEL": "x", "HW_NOTHING": "1"})
    assert len(refused.value.problems) == 3


def test_production_accepts_its_own_secrets() -> None:
    assert load(PRODUCTION).environment is Environment.PRODUCTION


def test_production_wants_to_know_what_a_redis_outage_means() -> None:
    with pytest.raises(SettingsError, match=r"^oidc\.on_redis_down: must be set in production"):
        load({name: value for name, value in PRODUCTION.items() if name != "HW_OIDC__ON_REDIS_DOWN"})
    assert load({**PRODUCTION, "HW_OIDC__ON_REDIS_DOWN": "open"}).oidc.on_redis_down == "open"
    assert load({}).oidc.on_redis_down == "open"


def test_production_has_lower_limits() -> None:
    assert load({}).ratelimit.http_per_minute == 6000
    assert load(PRODUCTION).ratelimit.http_per_minute == 600
    assert load({**PRODUCTION, "HW_RATELIMIT__HTTP_PER_MINUTE": "900"}).ratelimit.http_per_minute == 900


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"HW_OIDC__ISSUER": "http://id.example.org"}, "oidc.issuer"),
        ({"HW_HTTP__PUBLIC_URL": "http://api.example.org"}, "http.public_url"),
        ({"HW_HTTP__ALLOWED_HOSTS": ""}, "http.allowed_hosts"),
        ({"HW_LOG__FORMAT": "console"}, "log.format"),
        ({"HW_DATABASE__PASSWORD": "postgres"}, "database.password"),
        ({"HW_DATABASE__PASSWORD": "short"}, "database.password"),
        ({"HW_REDIS__PASSWORD": ""}, "redis.password"),
    ],
)
def test_production_refuses(changes: dict[str, str], name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({**PRODUCTION, **changes})
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [name]


def test_reads_a_secret_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("from-a-file\n")
    password = load({"HW_DATABASE__PASSWORD_FILE": str(secret)}).database.password
    assert password is not None
    assert password.get_secret_value() == "from-a-file"


def hw(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hw_server.cli", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HW_")}
    environment = {"HW_STATE": "/nowhere", **environment}
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=False)


def test_the_server_refuses_to_start() -> None:
    refused = hw("serve", HW_HTTP__PORT="99999", HW_LOG__LEVEL="loud")
    assert refused.returncode == 2
    assert re.findall(r"^([a-z.]+):", refused.stderr, re.M) == ["http.port", "log.level"]


def test_check_and_show() -> None:
    assert hw("config", "check").stdout == "the settings are valid\n"
    assert hw("config", "check", HW_ENVIRONMENT="production").returncode == 2
    shown = hw("config", "show", "--json", HW_REDIS__PASSWORD="very-secret").stdout
    assert "very-secret" not in shown
    assert "hw-dev" not in shown
    revealed = hw("config", "show", "--json", "--reveal", HW_REDIS__PASSWORD="very-secret").stdout
    assert "very-secret" in revealed
