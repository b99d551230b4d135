"""`hw up`, `restart`, `down`, `status`, `logs`, `clean`: the native stack with the application."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

    from hw_server.embedded import Ports, Process, ProcessSpec, Stack
    from hw_server.operations import Feature

APP = "hw-server"
ORIGINS = "HW_HTTP__CORS_ORIGINS"
SERVERS = ("HW_DATABASE__URL", "HW_REDIS__URL", "HW_OIDC__ISSUER")
PROXY_TIMEOUT = 30.0  # seconds for the proxy to see that a server is ready
SEEDING_USER = "dave"  # has all roles
State = Annotated[
    Path,
    typer.Option(
        "--state",
        envvar="HW_STATE",
        help="Folder that holds the data, logs and process ids.",
        show_default=".hw in the project",
    ),
]
PROJECT = Path(__file__).resolve().parents[3]
DEFAULT_STATE = (PROJECT if (PROJECT / "pyproject.toml").exists() else Path()) / ".hw"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the application runs: `servers` are the ports of its servers, `proxy` the one of the API of Traefik in
    front of them, None without it."""

    servers: tuple[int, ...]
    proxy: int | None = None
    workers: int = 1
    reload: bool = False


def _names() -> list[str]:
    return [path.stem for path in (Path(os.environ.get("HW_STATE", DEFAULT_STATE)) / "logs").glob("*.log")]


def up(
    keycloak: Annotated[bool, typer.Option("--keycloak", help="Run the real Keycloak 25 instead of NanoIDP.")] = False,
    port: Annotated[
        int, typer.Option(help="Port of the application.", min=1, max=65535, envvar="HW_HTTP__PORT")
    ] = 8000,
    postgres_port: Annotated[int, typer.Option(help="Port of PostgreSQL.", min=1, max=65535)] = 15432,
    redis_port: Annotated[int, typer.Option(help="Port of Valkey.", min=1, max=65535)] = 16379,
    oidc_port: Annotated[int, typer.Option(help="Port of the identity provider.", min=1, max=65535)] = 18080,
    workers: Annotated[int, typer.Option(help="Workers of each server of the application.", min=1, max=64)] = 1,
    replicas: Annotated[
        int, typer.Option(help="Servers of the application; several stand behind Traefik.", min=1, max=32)
    ] = 1,
    proxy: Annotated[bool, typer.Option("--proxy", help="Put Traefik in front, also of a single server.")] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart the application when a Python file changes.")
    ] = False,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of a front end that signs in here, such as http://localhost:5173; may be repeated. "
            "Default: HW_HTTP__CORS_ORIGINS."
        ),
    ] = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Start PostgreSQL, Valkey, an identity provider and the application in the background.

    What runs already goes on, unless its code, its settings or these options changed since it started: then it is restarted.
    """
    try:
        from hw_server.embedded import EmbeddedError, Ports, Process, Stack
        from hw_server.embedded import keycloak as real_keycloak
    except ModuleNotFoundError as error:
        typer.echo(f"hw up: {error.name} is not installed; `make venv` installs what the native stack needs", err=True)
        raise typer.Exit(1) from None

    if reload and (workers > 1 or replicas > 1):
        typer.echo("hw up: --reload runs one worker; leave --workers and --replicas out", err=True)
        raise typer.Exit(2)
    ports = Ports(port, postgres_port, redis_port, oidc_port)
    origins = origin or [part.strip() for part in os.environ.get(ORIGINS, "").split(",") if part.strip()]
    started = time.monotonic()
    try:
        running, before = _saved(state), _layout(state)
        proxy = proxy or replicas > 1
        if running is not None and not _any_runs(running):
            running = None
        if running is not None:
            same = (running.ports, running.provider == "keycloak") == (ports, keycloak)
            if not same or (len(before.servers), before.proxy is not None) != (replicas, proxy):
                raise EmbeddedError("the stack runs already with other options; `hw down` first")
        if keycloak:
            _say("Keycloak takes half a minute; the first time it is fetched")
            real_keycloak.provide_java()
        stack = Stack(state, ports, "keycloak" if keycloak else "nanoidp", origins=origins)
        servers, api = (before.servers, before.proxy) if running else _chosen_ports(ports, replicas, proxy=proxy)
        layout = Layout(servers, api, workers, reload)
        application = [Process(spec, stack.state) for spec in _application(stack, layout)]
        for process in application:
            process.refuse_taken_port()
        stack.refuse_taken_ports()
        state.mkdir(parents=True, exist_ok=True)
        saved = {"ports": asdict(ports), "provider": stack.provider, "origins": origins}
        _settings_file(state).write_text(json.dumps({**saved, **asdict(layout)}))
        stack.start(_say)
        for process in application:
            process.stop_outdated(_say)
        _start(application, layout)
        _seed(stack)
    except EmbeddedError as error:
        typer.echo(f"hw up: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _interrupted(state)
    _say(f"all is ready after {time.monotonic() - started:.0f} s")
    _table(stack, layout)


def restart(
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One server after the other: the others go on serving.")
    ] = False,
    state: State = DEFAULT_STATE,
) -> None:
    """Restart the application alone, with the options of the last `hw up`."""
    stack, layout = _saved(state, checked=True), _layout(state)
    if stack is None or not _any_runs(stack):
        typer.echo("nothing runs; start it with `make up`", err=True)
        raise typer.Exit(1)
    if rolling and len(layout.servers) == 1:
        typer.echo("hw restart: --rolling needs several servers; `hw up --replicas 3` starts them", err=True)
        raise typer.Exit(2)
    from hw_server.embedded import EmbeddedError

    names = _server_names(layout)
    application = [process for name, process in stack.processes.items() if name in (_proxy_name(), *names)]
    servers = [process for process in application if process.spec.name in names]
    try:
        if rolling:
            _restart_rolling(servers, layout)
        else:
            _stop(servers)
            _start(application, layout)
    except EmbeddedError as error:
        typer.echo(f"hw restart: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _interrupted(state)
    _say(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} ready")


def _restart_rolling(servers: "list[Process]", layout: Layout) -> None:
    # Those that do not run come first: meanwhile the others serve.
    for process in sorted(servers, key=lambda process: process.pid is not None):
        process.stop()
        process.start()
        process.wait()
        _wait_for_proxy(layout, [process.spec.port])
        _say(f"{process.spec.name} serves again")


def _start(application: "list[Process]", layout: Layout) -> None:
    started = [process for process in application if process.start()]
    if started:
        _say("migrations and application are starting")
    for process in application:
        process.wait()
    _wait_for_proxy(layout, layout.servers)


def _stop(servers: "list[Process]") -> None:
    """All at the same time."""
    running = [process for process in servers if process.pid is not None]
    for process in running:
        process.ask_to_stop()
    for process in running:
        process.stop()
        _say(f"{process.spec.name} stopped")


def _wait_for_proxy(layout: Layout, ports: Iterable[int]) -> None:
    """Returns once the proxy, if there is one, sends requests to these servers."""
    if layout.proxy is None:
        return
    from hw_server.embedded import EmbeddedError
    from hw_server.embedded.traefik import healthy

    deadline = time.monotonic() + PROXY_TIMEOUT
    while not set(ports) <= (healthy(layout.proxy) or set()):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{_proxy_name()} does not see the servers ready (see `hw logs {_proxy_name()}`)")
        time.sleep(0.05)


def down(
    name: Annotated[str | None, typer.Argument(help="One process only.", autocompletion=_names)] = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Stop everything that `hw up` started, or one process of it; the data stays."""
    stack = _saved(state)
    if stack is None or not _any_runs(stack):
        typer.echo("nothing runs")
        return
    if name is None:
        _stop_all(stack, _layout(state))
    elif name not in stack.processes:
        typer.echo(f"there is no process {name}; processes: {', '.join(stack.processes)}", err=True)
        raise typer.Exit(1)
    else:
        _say(f"{name} stopped" if stack.processes[name].stop() else f"{name} does not run")


def _stop_all(stack: "Stack", layout: Layout) -> None:
    _stop([stack.processes[name] for name in _server_names(layout)])
    stack.stop(_say)


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, state: State = DEFAULT_STATE
) -> None:
    """Show every process: name, pid, port, state. Exit code 1 unless all of them run."""
    stack = _saved(state)
    processes = list(stack.processes.values()) if stack else []
    rows: list[dict[str, Any]] = [
        {
            "name": process.spec.name,
            "pid": process.pid,
            "port": process.spec.port,
            "state": process.status,
        }
        for process in processes
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        typer.echo("nothing runs; start it with `make up`")
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table("Name", "State", "Port", "Pid")
        for item in rows:
            table.add_row(item["name"], item["state"], str(item["port"]), str(item["pid"] or ""))
        Console().print(table)
    raise typer.Exit(0 if rows and all(item["state"] == "running" for item in rows) else 1)


def logs(
    name: Annotated[str, typer.Argument(help="Whose log.", autocompletion=_names)] = APP,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Last lines to show.", min=0)] = 50,
    state: State = DEFAULT_STATE,
) -> None:
    """Show a process's log; that of hw-server is those of all its servers."""
    names = _server_names(_layout(state)) if name == APP else [name]
    paths = [path for name in names if (path := state / "logs" / f"{name}.log").exists()]
    if not paths:
        existing = ", ".join(sorted(log.stem for log in (state / "logs").glob("*.log"))) or "none yet"
        typer.echo(f"there is no log of {name}; logs: {existing}", err=True)
        raise typer.Exit(1)
    tail = [shutil.which("tail") or "tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, paths)]
    try:
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            raise typer.Exit(subprocess.run(tail, check=False).returncode)  # noqa: S603
        raise typer.Exit(_without_colours(tail))
    except KeyboardInterrupt:  # how following ends
        typer.echo(f"\n{_still_running(state)}", err=True)


def _without_colours(command: list[str]) -> int:
    from hw_server.observability.logging import COLOUR

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:  # noqa: S603
        assert process.stdout is not None
        for line in process.stdout:
            print(COLOUR.sub("", line), end="", flush=True)
    return process.returncode


def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    state: State = DEFAULT_STATE,
) -> None:
    """Stop everything and remove its data."""
    stack = _saved(state)
    if stack is None:
        typer.echo(f"{state.absolute()} holds no data of `hw up`; nothing was removed", err=True)
        raise typer.Exit(0 if not state.exists() else 1)
    if not yes:
        typer.confirm(f"Remove all data in {state.absolute()}?", abort=True)
    from hw_server.embedded.postgres import remove_data

    _stop_all(stack, _layout(state))
    remove_data(state)
    shutil.rmtree(state, ignore_errors=True)
    typer.echo("removed")


def running_environment(*, required: bool = True, owner: bool = True) -> dict[str, str]:
    """The settings that the application of a native stack that runs is given, under those of the caller's own environment; with
    those of the tables' owner, unless `owner` is False. Where none runs and the environment names no server, exits with 1, unless
    `required` is False."""
    state = Path(os.environ.get("HW_STATE", DEFAULT_STATE))
    stack = _saved(state)
    if stack is not None and _any_runs(stack):
        environment = dict(stack.processes[_server_names(_layout(state))[0]].spec.environment)
        return _under_own(_owner(stack)) | environment if owner else environment
    if required and not any(name in os.environ or f"{name}_FILE" in os.environ for name in SERVERS):
        typer.echo(
            f"nothing runs; start it with `make up`, or name the servers by {', '.join(SERVERS)}",
            err=True,
        )
        raise typer.Exit(1)
    return dict(os.environ)


def _owner(stack: "Stack") -> dict[str, str]:
    """What migrations need besides; nothing where the caller names a database of its own."""
    from hw_server.settings import SettingsError, load

    try:
        used = load(_under_own(stack.environment())).database.url.get_secret_value()
    except SettingsError:
        return {}  # for the command itself to say what is wrong
    owner = stack.owner()
    [address] = owner.values()
    return owner if used.rpartition("@")[2] == address.rpartition("@")[2] else {}


def _migrate(stack: "Stack") -> None:
    """As the owner of the tables; the application applies what a database of the caller's own needs."""
    from hw_server.embedded import EmbeddedError

    if owner := _owner(stack):
        command = [sys.executable, "-m", "hw_server.cli", "migrate", "up"]
        environment = _under_own(stack.environment() | owner)
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
        if result.returncode != 0:
            raise EmbeddedError(f"migrations failed: {result.stderr.strip()[-300:]}")


def _under_own(settings: dict[str, str]) -> dict[str, str]:
    """The caller's environment wins, also where it names a file that holds the value."""
    return {name: value for name, value in settings.items() if f"{name}_FILE" not in os.environ} | dict(os.environ)


def _server_names(layout: Layout) -> list[str]:
    if len(layout.servers) == 1:
        return [APP]
    return [f"{APP}-{number}" for number in range(1, len(layout.servers) + 1)]


def _proxy_name() -> str:
    from hw_server.embedded.traefik import NAME

    return NAME


def _chosen_ports(ports: "Ports", replicas: int, *, proxy: bool) -> tuple[tuple[int, ...], int | None]:
    """The ports of the servers and of the proxy's API: the next free ones after the public one."""
    if not proxy:
        return (ports.app,), None
    from hw_server.embedded import keycloak
    from hw_server.embedded.process import free

    others = {ports.postgres, ports.redis, ports.oidc, ports.oidc + keycloak.MANAGEMENT}
    candidates = (port for port in range(ports.app + 1, 65_536) if port not in others and free(port))
    servers = tuple(next(candidates) for _ in range(replicas))
    return servers, next(candidates)


def _application(stack: "Stack", layout: Layout, *, checked: bool = True) -> "list[ProcessSpec]":
    """The proxy, if there is one, and the servers; the first server takes the migrations with it. Exits with 2 where the
    settings are wrong, which only matters (`checked`) where it is to be started."""
    from hw_server.embedded import ProcessSpec, traefik
    from hw_server.embedded.process import serves

    settings = stack.environment() | {"HW_HTTP__WORKERS": str(layout.workers)}
    if layout.proxy is not None:
        settings |= {
            "HW_HTTP__TRUSTED_PROXIES": "127.0.0.1/32",
            "HW_HTTP__DRAIN_DELAY": str(traefik.DRAIN_DELAY),
        }
    if len(layout.servers) > 1 and _owner(stack):
        settings["HW_DATABASE__MIGRATE_ON_START"] = "false"  # `_migrate` has done it, once
    environment = _under_own(settings) | {"HW_STATE": str(stack.state)}
    if stack.origins:
        environment[ORIGINS] = ",".join(stack.origins)
    if environment.get("HW_ENVIRONMENT") != "production" and "HW_LOG__FORMAT_FILE" not in environment:
        environment.setdefault("HW_LOG__FORMAT", "console")
    options = ["--reload"] if layout.reload else []
    started_from = _started_from(environment, options, reload=layout.reload) if checked else {}
    stop_timeout = _stop_timeout(environment)
    servers = [
        ProcessSpec(
            name=name,
            port=port,
            command=[sys.executable, "-m", "hw_server.cli", "serve", "--port", str(port), *options],
            environment=environment,
            ready=partial(serves, f"http://127.0.0.1:{port}/health"),
            prepare=partial(_migrate, stack) if port == layout.servers[0] else lambda: None,
            option="--port",
            stop_timeout=stop_timeout,
            started_from=started_from,
        )
        for name, port in zip(_server_names(layout), layout.servers, strict=True)
    ]
    if layout.proxy is None:
        return servers
    return [traefik.spec(stack.state, stack.ports.app, layout.proxy, layout.servers), *servers]


def _stop_timeout(environment: dict[str, str]) -> float:
    from hw_server.settings import SettingsError, load

    try:
        http = load(environment).http
    except SettingsError:
        return 30.0  # the settings were made invalid after it started
    return http.drain_delay + http.shutdown_timeout + 10


def _started_from(environment: dict[str, str], options: list[str], *, reload: bool) -> dict[str, str]:
    from hw_server.cli.config import shown, walk
    from hw_server.cli.reload import code_digest
    from hw_server.cli.serve import settings_or_exit

    settings = settings_or_exit(environment)
    values = "\n".join(f"{name}={shown(value, reveal=True)}" for name, value, _ in walk(settings))
    digests = {"settings": hashlib.sha256(values.encode()).hexdigest(), "options": " ".join(options)}
    # A reloading application takes changed code by itself.
    return digests if reload else {"code": code_digest(settings.features), **digests}


def _saved(state: Path, *, checked: bool = False) -> "Stack | None":
    """The stack as the last `hw up` described it. `checked` as for `_application`."""
    try:
        saved = json.loads(_settings_file(state).read_text())
    except (OSError, ValueError):
        return None
    from hw_server.embedded import Ports, Stack  # a server alone is installed without it

    stack = Stack(state, Ports(**saved["ports"]), saved["provider"], origins=saved.get("origins", ()))
    for spec in _application(stack, _layout(state), checked=checked):
        stack.add(spec)
    return stack


def _layout(state: Path) -> Layout:
    """How the last `hw up` ran the application."""
    try:
        saved = json.loads(_settings_file(state).read_text())
    except (OSError, ValueError):
        return Layout(())
    servers = tuple(saved.get("servers", (saved["ports"]["app"],)))
    return Layout(servers, saved.get("proxy"), saved.get("workers", 1), saved.get("reload", False))


def _settings_file(state: Path) -> Path:
    return state / "stack.json"


def _any_runs(stack: "Stack") -> bool:
    return any(process.pid is not None for process in stack.processes.values())


def _still_running(state: Path) -> str:
    stack = _saved(state)
    running = [name for name, process in stack.processes.items() if process.pid is not None] if stack else []
    return f"still running: {', '.join(running)}; `make down` stops them" if running else "nothing runs"


def _interrupted(state: Path) -> NoReturn:
    typer.echo(f"\ninterrupted; {_still_running(state)}", err=True)
    raise typer.Exit(130)


def _say(line: str) -> None:
    try:
        typer.echo(f"  {line}")
    except BrokenPipeError:  # `hw up | head`: what was begun is ended, unseen
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _seed(stack: "Stack") -> None:
    """Adds the features' rows for development, through the API, where there are none."""
    import httpx

    seeds = [feature.seed for feature in _features() if feature.seed is not None]
    if not seeds:
        return
    base = f"http://127.0.0.1:{stack.ports.app}/api"
    command = [sys.executable, "-m", "hw_server.cli", "token", SEEDING_USER]
    environment = {**os.environ, "HW_STATE": str(stack.state)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if result.returncode != 0:
        typer.echo(f"  no rows were added: {result.stderr.strip()}", err=True)
        return
    headers = {"Authorization": f"Bearer {result.stdout.strip()}"}
    with httpx.Client(headers=headers, timeout=10, trust_env=False) as http:
        for seed in seeds:
            response = http.get(f"{base}{seed.path}?per_page=1")
            if response.status_code == 200 and not response.json()["items"]:
                ids = {field: _first_ids(http, f"{base}{path}") for field, path in seed.references.items()}
                rows = [
                    {**row, **{field: parents[number % len(parents)] for field, parents in ids.items() if parents}}
                    for number, row in enumerate(seed.rows)
                ]
                added = [http.post(f"{base}{seed.path}", json=row).status_code for row in rows]
                _say(f"{added.count(201)} {seed.path.strip('/')} added")


def _first_ids(http: "httpx.Client", url: str) -> list[int]:
    response = http.get(url)
    return [item["id"] for item in response.json()["items"]] if response.status_code == 200 else []


def _features() -> "Sequence[Feature]":
    from hw_server.cli.serve import settings_or_exit
    from hw_server.operations import load_features

    return load_features(settings_or_exit().features)


def _table(stack: "Stack", layout: Layout) -> None:
    from rich.console import Console
    from rich.table import Table

    from hw_server.embedded.users import USERS

    base = f"http://localhost:{stack.ports.app}"
    identity = f"http://127.0.0.1:{stack.ports.oidc}"
    rows = (
        ("API", f"{base}/api"),
        ("API documents", f"{base}/docs"),
        ("Console", f"{base}/"),
        ("WebSocket", f"ws://localhost:{stack.ports.app}/web"),
        ("Health, metrics", f"{base}/health  {base}/metrics"),
        (
            "Identity provider",
            identity
            + ("/admin (admin / admin)" if stack.provider == "keycloak" else "/.well-known/openid-configuration"),
        ),
        *(
            [
                ("Proxy", f"http://127.0.0.1:{layout.proxy}/dashboard/"),
                ("Servers", "  ".join(f"http://127.0.0.1:{port}" for port in layout.servers)),
            ]
            if layout.proxy is not None
            else []
        ),
        ("PostgreSQL", f"postgresql://hw:hw-dev@127.0.0.1:{stack.ports.postgres}/hw_db"),
        ("Valkey", f"redis://127.0.0.1:{stack.ports.redis}"),
    )
    table = Table("What", "Where")
    for row in rows:
        table.add_row(*row)
    users = Table("User = password", "Roles")
    for name, roles in USERS.items():
        users.add_row(name, ", ".join(roles))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(users)
    hw = Path(sys.executable).parent / "hw"
    shown = hw.relative_to(Path.cwd()) if hw.is_relative_to(Path.cwd()) else hw
    console.print("A first request:\n", highlight=False)
    seeded = next((feature.seed.path for feature in _features() if feature.seed is not None), "/me")
    print(f'  curl -s -H "Authorization: Bearer $({shown} token alice)" {base}/api{seeded}\n')
