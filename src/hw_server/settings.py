"""Every setting: described, typed and validated together. Nothing else reads the environment.

A setting `oidc.issuer` is the variable `HW_OIDC__ISSUER`; `HW_OIDC__ISSUER_FILE` names a file that
holds the value (Docker secrets). `hw config show` prints all of them, `hw config check` what is wrong.
"""

import os
import re
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

PREFIX = "HW_"
NOT_SETTINGS = frozenset({"HW_STATE", "HW_PASSWORD"})  # options of `hw`
DELIMITER = "__"
HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
DEVELOPMENT_SECRETS = frozenset(
    {"postgres", "hw", "hw-dev", "hw-owner-dev", "admin", "password", "secret", "changeme", "keycloak"}
)


class SettingsError(Exception):
    """Settings the server refuses to start with. `problems` are lines `name: what is wrong`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Environment(StrEnum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_split)]
# Defaults that differ in production; the others hold everywhere.
PRODUCTION_DEFAULTS = {
    "ratelimit.http_per_minute": "600",
    "ratelimit.ws_per_minute": "1200",
    "http.max_connections_per_address": "1000",
    "ratelimit.handshakes_per_minute": "600",
    "ratelimit.sockets_per_user": "20",
    "http.drain_delay": "5",
    "audit.failures_per_minute": "60",
}
OnRedisDown = Literal["open", "closed"]


class Group(BaseModel):
    """Settings that belong together: immutable, unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class HttpSettings(Group):
    """The HTTP server: address, limits, timeouts and shutdown."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=256, description="Worker processes of `hw serve`.")
    worker_timeout: float = Field(
        30.0,
        ge=2,
        le=600,
        description="Longest time that one of several workers hangs before it is replaced, seconds.",
    )
    public_url: str = Field("http://localhost:8000", description="Where clients reach the server; used in documents.")
    trusted_proxies: Networks = Field(
        (),
        description="Networks whose `X-Forwarded-For` is believed, comma separated.",
    )
    allowed_hosts: Names = Field(
        (),
        description="Host names answered, comma separated; empty answers any. `*.example.org` matches subdomains.",
    )
    cors_origins: Names = Field((), description="Browser origins allowed to call the API, comma separated.")
    max_connections: int = Field(
        25_000, ge=1, description="Open TCP connections at most, sockets included, per worker; more get a 503."
    )
    max_connections_per_address: int = Field(
        25_000,
        ge=1,
        description="Open HTTP connections of one address at most, per worker; trusted proxies have no limit.",
    )
    header_timeout: float = Field(10.0, gt=0, le=300, description="Longest wait for the headers of a request, seconds.")
    max_header_bytes: int = Field(65_536, ge=1024, description="Largest headers of a request, bytes.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest request body, bytes.")
    max_json_members: int = Field(
        5_000, ge=100, description="Members and items in one body or message at most, all depths together."
    )
    body_timeout: float = Field(
        30.0, gt=0, le=600, description="Longest wait for the whole body of a request, seconds."
    )
    write_timeout: float = Field(
        30.0, gt=0, le=600, description="Longest wait for a client that does not read, seconds."
    )
    keep_alive_timeout: int = Field(
        100,
        ge=1,
        le=3600,
        description="Seconds an idle connection stays open: longer than the proxy in front keeps it (Traefik: 90), which would send "
        "a request into its end.",
    )
    request_timeout: float = Field(10.0, gt=0, le=300, description="Longest time for one operation, seconds.")
    drain_delay: float = Field(
        0.0,
        ge=0,
        le=120,
        description="Seconds between readiness off and the end of accepting, for load balancers.",
    )
    docs: bool = Field(True, description="Serve `/docs`, `/openapi.json`, `/openrpc.json` and `/asyncapi.json`.")
    console: bool = Field(True, description="Serve the console at `/`.")
    shutdown_timeout: float = Field(15.0, gt=0, le=300, description="Longest whole shutdown after the drain, seconds.")


class DatabaseSettings(Group):
    """PostgreSQL: addresses, pool, timeouts and migrations."""

    url: SecretStr = Field(
        SecretStr("postgresql://hw:hw-dev@127.0.0.1:15432/hw_db"),
        description="PostgreSQL address with credentials.",
    )
    password: SecretStr | None = Field(None, description="Password, if not part of `database.url`.")
    owner_url: SecretStr | None = Field(
        None,
        description="PostgreSQL address of the role that owns the tables, for `hw migrate` alone; default: `database.url`.",
    )
    owner_password: SecretStr | None = Field(None, description="Password, if not part of `database.owner_url`.")
    pool_max: int = Field(10, ge=1, le=1000, description="Connections at most, per worker.")
    connect_timeout: float = Field(3.0, gt=0, le=60, description="Longest wait for a new connection, seconds.")
    command_timeout: float = Field(5.0, gt=0, le=300, description="Longest single statement, seconds.")
    connection_max_age: float = Field(
        1800.0,
        gt=0,
        le=86_400,
        description="Age after which a connection is replaced, seconds: a failover or a new replica is noticed.",
    )
    migrate_on_start: bool = Field(True, description="Apply pending migrations at start, one process at a time.")


class RedisSettings(Group):
    """Redis or Valkey: address, databases and key prefix."""

    url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:16379"), description="Redis or Valkey address without a database."
    )
    password: SecretStr | None = Field(None, description="Password, if not part of `redis.url`.")
    cache_db: int = Field(0, ge=0, description="Database of rate limits, cached totals and socket counts.")
    auth_db: int = Field(1, ge=0, description="Database of sessions and revocations.")
    timeout: float = Field(0.5, gt=0, le=10, description="Longest wait for one answer, seconds.")
    key_prefix: str = Field("hw:", description="Prefix of every key and channel.")


class OidcSettings(Group):
    """The OpenID provider and the verification of its tokens."""

    issuer: str = Field("http://127.0.0.1:18080/realms/hw", description="Issuer as it stands in tokens (`iss`).")
    internal_url: str | None = Field(None, description="Where this server reaches the issuer, if not at `oidc.issuer`.")
    audience: str = Field("hw-api", min_length=1, description="Required audience (`aud`) of access tokens.")
    client_id: str = Field(
        "hw-web", min_length=1, description="Public client of the API documents; audience of logout tokens."
    )
    roles_claim: str = Field("realm_access.roles", description="Dotted path of the claim that lists roles.")
    username_claim: str = Field(
        "preferred_username", description="Claim of the user's name; `sub` where it is missing."
    )
    leeway: float = Field(10.0, ge=0, le=120, description="Clock difference tolerated, seconds.")
    jwks_cooldown: float = Field(
        10.0, ge=0, le=3600, description="Time without fetches after one for an unknown key was in vain, seconds."
    )
    jwks_max_age: float = Field(
        300.0, gt=0, le=86_400, description="Age at which the provider's keys are fetched again, seconds."
    )
    jwks_max_stale: float = Field(
        86_400.0,
        gt=0,
        description="Longest time the keys last fetched count while the provider is out of reach, seconds.",
    )
    session_max_age: float = Field(
        36_000.0,
        ge=60,
        description="Longest session of the provider, seconds: revocations last as long. Offline sessions may be longer.",
    )
    timeout: float = Field(3.0, gt=0, le=30, description="Longest wait for the provider, seconds.")
    token_cache_size: int = Field(10_000, ge=0, description="Verified tokens kept in memory, per worker.")
    on_redis_down: OnRedisDown = Field(
        "open",
        description="With Redis out of reach: `open` trusts the revocations known so far, `closed` answers 503.",
    )


class RateLimitSettings(Group):
    """Limits per user or client address."""

    http_per_minute: int = Field(6000, ge=1, description="HTTP requests a minute per user or client address.")
    ws_per_minute: int = Field(12_000, ge=1, description="Socket calls a minute per user.")
    publishes_per_minute: int = Field(
        600, ge=1, description="Events a minute that a user publishes with `topic.publish`."
    )
    handshakes_per_minute: int = Field(
        6000, ge=1, description="Attempts to open a socket a minute, per client address and per user."
    )
    sockets_per_user: int = Field(100, ge=1, description="Open sockets per user, over all instances.")
    calls_per_user: int = Field(
        8,
        ge=1,
        description="Calls of one user that use the database at the same time, per worker; others wait. "
        "Never all of `HW_DATABASE__POOL_MAX`.",
    )
    waiting_per_user: int = Field(
        200, ge=1, description="Calls of one user that wait at most, per worker; past it 429."
    )
    on_redis_down: OnRedisDown = Field(
        "open", description="With Redis out of reach: `open` counts per process, `closed` answers 503."
    )


class WebSocketSettings(Group):
    """Sockets: sign-in, limits and keep-alive."""

    allowed_origins: Names = Field(
        (), description="Browser origins allowed to open a socket besides `http.cors_origins`."
    )
    auth_timeout: float = Field(5.0, gt=0, le=60, description="Time to sign in after connecting, seconds.")
    max_frame_bytes: int = Field(262_144, ge=1024, description="Largest message from a client, bytes.")
    max_in_flight: int = Field(16, ge=1, le=1000, description="Calls of one socket that run at the same time.")
    max_batch: int = Field(50, ge=1, le=1000, description="Calls in one batch.")
    max_connections: int = Field(20_000, ge=1, description="Open sockets at most, per worker.")
    max_pending_bytes: int = Field(
        524_288, ge=4096, description="Bytes of answers in progress and unsent, per socket; past it calls are refused."
    )
    send_buffer_bytes: int = Field(1_048_576, ge=4096, description="Unsent bytes after which a slow socket is closed.")
    drain_rate: float = Field(
        1000.0, gt=0, description="Clients a second that a stopping worker sends away; within a third of the shutdown."
    )
    ping_interval: float = Field(
        20.0, gt=0, le=600, description="Seconds between pings; no answer in the same time closes."
    )


class TopicSettings(Group):
    """Topics: outbox relay, sizes of events, and what is kept in memory."""

    poll_interval: float = Field(0.1, gt=0, le=10, description="Longest wait of an event for the relay, seconds.")
    max_per_socket: int = Field(100, ge=1, le=10_000, description="Topics one socket or event stream subscribes to.")
    max_topics: int = Field(20_000, ge=1, description="Topics with subscribers at most, per worker.")
    max_event_bytes: int = Field(65_536, ge=256, le=1_048_576, description="Largest event, bytes of JSON.")
    max_events: int = Field(1000, ge=1, le=100_000, description="Events that one transaction publishes at most.")
    recent_bytes: int = Field(
        67_108_864, ge=65_536, description="Memory for the last events of all topics, bytes per worker."
    )
    check_interval: float = Field(
        600.0, gt=0, le=3000, description="Seconds between checks of a followed topic's position against Redis."
    )
    tries: int = Field(5, ge=1, le=1000, description="Tries before an event that Redis refuses is a dead letter.")
    wait_replicas: int = Field(
        0, ge=0, le=10, description="Redis replicas that must hold an event before it leaves the outbox."
    )


class AuditSettings(Group):
    """The audit trail: queue, spool on disk and retention."""

    queue_size: int = Field(10_000, ge=1, description="Rows waiting in memory at most, per worker.")
    batch_size: int = Field(500, ge=1, le=10_000, description="Rows written at once.")
    flush_interval: float = Field(0.5, gt=0, le=60, description="Longest time a row waits in memory, seconds.")
    spill_dir: Path = Field(Path(".hw/spill"), description="Folder that takes rows while PostgreSQL is out of reach.")
    spill_max_bytes: int = Field(
        268_435_456, ge=0, description="Bytes on disk at most; past it rows are counted as dropped."
    )
    retention_months: int = Field(12, ge=1, le=240, description="Whole months kept; older partitions are dropped.")
    failures_per_minute: int = Field(
        1000,
        ge=1,
        description="Rows of refusals and failures a minute, per caller and worker; others are only counted.",
    )
    record_reads: bool = Field(True, description="Also record reads, not only changes, denials and sign-ins.")


class BackupSettings(Group):
    """`hw backup` and `hw restore`; the server uses none of them."""

    url: SecretStr | None = Field(
        None, description="PostgreSQL address of a superuser, for `hw backup` and `hw restore` alone."
    )
    password: SecretStr | None = Field(None, description="Password, if not part of `backup.url`.")
    databases: Names = Field((), description="Databases to back up, comma separated; without any: all but `postgres`.")
    dir: Path = Field(Path(".hw/backups"), description="Folder of the backups.")
    keep: int = Field(14, ge=1, le=10_000, description="Backups kept in the folder; older ones are deleted.")
    target: str | None = Field(
        None,
        description="Where each backup is copied besides, as rclone names it (`s3:bucket/hw`); nothing is deleted there.",
    )
    interval_hours: float = Field(
        24.0, gt=0, le=720, description="Hours between two backups of `hw backup --schedule`."
    )
    metrics_port: int = Field(9101, ge=1, le=65535, description="Port of the metrics of `hw backup --schedule`.")


class LogSettings(Group):
    """Log lines on stdout."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level written.")
    format: Literal["json", "console"] = Field(
        "json",
        description="`json` for machines, `console` for people: colours, tracebacks as text; not in production.",
    )
    requests: bool = Field(True, description="Write one line for each request and call.")


class Settings(Group):
    """All settings of the server; `load` reads them from the environment."""

    environment: Environment = Field(
        Environment.DEVELOPMENT,
        description="`production` refuses development secrets and plain HTTP issuers.",
    )
    features: str = Field(
        "hw_server.features:FEATURES",
        pattern=r"^[\w.]+:\w+$",
        description="The features to serve, `module:NAME` of a list.",
    )
    http: HttpSettings = Field(default_factory=HttpSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    oidc: OidcSettings = Field(default_factory=OidcSettings)
    ratelimit: RateLimitSettings = Field(default_factory=RateLimitSettings)
    ws: WebSocketSettings = Field(default_factory=WebSocketSettings)
    topics: TopicSettings = Field(default_factory=TopicSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    backup: BackupSettings = Field(default_factory=BackupSettings)
    log: LogSettings = Field(default_factory=LogSettings)


def load(environ: dict[str, str] | None = None) -> Settings:
    """Settings from the environment; raises `SettingsError` that names every bad one."""
    source = dict(os.environ if environ is None else environ)
    problems: list[str] = []
    values: dict[str, Any] = {}
    for variable, raw in sorted(source.items()):
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        name, text = variable, raw
        if variable.endswith("_FILE"):
            name = variable.removesuffix("_FILE")
            if name in source:
                problems.append(f"{_dotted(name)}: set {name} or {variable}, not both")
                continue
            try:
                text = Path(raw).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{_dotted(name)}: cannot read {variable}={raw}: {type(error).__name__}")
                continue
        _place(values, _dotted(name).split("."), text)
    if values.get("environment") == Environment.PRODUCTION:
        for name, text in PRODUCTION_DEFAULTS.items():
            if variable_of(name) not in source and f"{variable_of(name)}_FILE" not in source:
                _place(values, name.split("."), text)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += dict.fromkeys(_explain(item) for item in error.errors(include_input=False, include_url=False))
        raise SettingsError(problems) from None
    problems += _conflicts(settings)
    if problems:
        raise SettingsError(problems)
    return settings


def variable_of(name: str) -> str:
    """`oidc.issuer` -> `HW_OIDC__ISSUER`."""
    return PREFIX + name.replace(".", DELIMITER).upper()


def _dotted(variable: str) -> str:
    return variable.removeprefix(PREFIX).lower().replace(DELIMITER, ".")


def _place(values: dict[str, Any], path: list[str], text: str) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            return
        values = inner
    values[path[-1]] = text


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"][:2])
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such setting ({variable_of(name)}); `hw config show` lists all"
    if len(error["loc"]) > 2:
        return f"{name}: holds a value that cannot be read ({variable_of(name)})"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]} ({variable_of(name)})"


def _conflicts(settings: Settings) -> list[str]:
    """What no single field can tell: values that contradict each other or the environment."""
    problems = []
    for name, url, schemes in (
        ("database.url", settings.database.url.get_secret_value(), ("postgresql", "postgres")),
        (
            "database.owner_url",
            (settings.database.owner_url or settings.database.url).get_secret_value(),
            ("postgresql", "postgres"),
        ),
        ("redis.url", settings.redis.url.get_secret_value(), ("redis", "rediss", "unix")),
        ("oidc.issuer", settings.oidc.issuer, ("http", "https")),
        ("oidc.internal_url", settings.oidc.internal_url or "http://unset", ("http", "https")),
        ("http.public_url", settings.http.public_url, ("http", "https")),
    ):
        try:
            parts = urlsplit(url)
            usable = parts.scheme in schemes and bool(parts.hostname or parts.scheme == "unix")
            _ = parts.port
        except ValueError:
            usable = False
        if not usable and not (name == "database.owner_url" and settings.database.owner_url is None):
            problems.append(f"{name}: must be an address that starts with {' or '.join(s + '://' for s in schemes)}")
    if settings.database.owner_password is not None and settings.database.owner_url is None:
        problems.append("database.owner_password: needs database.owner_url")
    if settings.oidc.issuer.endswith("/"):
        problems.append(
            "oidc.issuer: must not end with a slash; it is compared with the token's `iss` letter by letter"
        )
    if settings.oidc.jwks_max_stale < settings.oidc.jwks_max_age:
        problems.append("oidc.jwks_max_stale: must not be shorter than oidc.jwks_max_age")
    if settings.redis.cache_db == settings.redis.auth_db:
        problems.append("redis.auth_db: must differ from redis.cache_db")
    for name, origins in (
        ("http.cors_origins", settings.http.cors_origins),
        ("ws.allowed_origins", settings.ws.allowed_origins),
    ):
        for origin in origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path:
                problems.append(f"{name}: {origin!r} is not an origin such as https://app.example.org")
    for host in settings.http.allowed_hosts:
        if not HOST.fullmatch(host):
            problems.append(f"http.allowed_hosts: {host!r} is neither a host name nor *.example.org; empty answers any")
    if settings.environment is Environment.PRODUCTION and not problems:
        problems += _production(settings)
    return problems


def _production(settings: Settings) -> list[str]:
    problems = []
    if not settings.oidc.issuer.startswith("https://"):
        problems.append("oidc.issuer: must be https in production")
    if not settings.http.public_url.startswith("https://"):
        problems.append("http.public_url: must be https in production")
    if "on_redis_down" not in settings.oidc.model_fields_set:
        problems.append(
            "oidc.on_redis_down: must be set in production: `open` lets ended sessions in again while Redis is out of reach, "
            f"`closed` refuses everybody ({variable_of('oidc.on_redis_down')})"
        )
    if not settings.http.allowed_hosts:
        problems.append("http.allowed_hosts: must name the hosts to answer in production")
    if settings.log.format != "json":
        problems.append("log.format: must be json in production")
    owner = settings.database.owner_url
    for name, password in (
        *(
            [
                (
                    "database.owner_password",
                    settings.database.owner_password or urlsplit(owner.get_secret_value()).password,
                )
            ]
            if owner is not None
            else []
        ),
        (
            "database.password",
            settings.database.password or urlsplit(settings.database.url.get_secret_value()).password,
        ),
        (
            "redis.password",
            settings.redis.password or urlsplit(settings.redis.url.get_secret_value()).password,
        ),
    ):
        text = password.get_secret_value() if isinstance(password, SecretStr) else password
        if not text:
            problems.append(f"{name}: must be set in production")
        elif text in DEVELOPMENT_SECRETS or len(text) < 12:
            problems.append(f"{name}: is a development secret or shorter than 12 characters; production needs its own")
    return problems
