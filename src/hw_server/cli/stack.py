"""`hw up`, `restart`, `down`, `status`, `logs`, `clean`: the native stack with the application."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

    from hw_server.embedded import ProcessSpec, Stack
    from hw_server.operations import Feature

APP = "hw-server"
ORIGINS = "HW_HTTP__CORS_ORIGINS"
SERVERS = ("HW_DATABASE__URL", "HW_REDIS__URL", "HW_OIDC__ISSUER")
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


def _names() -> list[str]:
    return [path.stem for path in (DEFAULT_STATE / "logs").glob("*.log")]


def up(
    keycloak: Annotated[bool, typer.Option("--keycloak", help="Run the real Keycloak 25 instead of NanoIDP.")] = False,
    port: Annotated[
        int, typer.Option(help="Port of the application.", min=1, max=65535, envvar="HW_HTTP__PORT")
    ] = 8000,
    postgres_port: Annotated[int, typer.Option(help="Port of PostgreSQL.", min=1, max=65535)] = 15432,
    redis_port: Annotated[int, typer.Option(help="Port of Valkey.", min=1, max=65535)] = 16379,
    oidc_port: Annotated[int, typer.Option(help="Port of the identity provider.", min=1, max=65535)] = 18080,
    workers: Annotated[int, typer.Option(help="Workers of the application.", min=1, max=64)] = 1,
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
        from hw_server.embedded import EmbeddedError, Ports, Stack
        from hw_server.embedded import keycloak as real_keycloak
        from hw_server.embedded.process import Process
    except ModuleNotFoundError as error:
        typer.echo(f"hw up: {error.name} is not installed; `make venv` installs what the native stack needs", err=True)
        raise typer.Exit(1) from None

    if reload and workers > 1:
        typer.echo("hw up: --reload runs one worker; leave --workers out", err=True)
        raise typer.Exit(2)
    ports = Ports(port, postgres_port, redis_port, oidc_port)
    origins = origin or [part.strip() for part in os.environ.get(ORIGINS, "").split(",") if part.strip()]
    started = time.monotonic()
    try:
        running = _saved(state)
        if (
            running is not None
            and _any_runs(running)
            and (running.ports, running.provider == "keycloak") != (ports, keycloak)
        ):
            raise EmbeddedError("the stack runs already with other options; `hw down` first")
        if keycloak:
            _say("Keycloak takes half a minute; the first time it is fetched")
            real_keycloak.provide_java()
        stack = Stack(state, ports, "keycloak" if keycloak else "nanoidp", origins=origins)
        application = Process(_application(stack, workers, reload=reload), stack.state)
        application.refuse_taken_port()
        stack.refuse_taken_ports()
        state.mkdir(parents=True, exist_ok=True)
        saved = {"ports": asdict(ports), "provider": stack.provider, "origins": origins}
        _settings_file(state).write_text(json.dumps({**saved, "workers": workers, "reload": reload}))
        stack.start(_say)
        application.stop_outdated(_say)
        if application.start():
            _say("migrations and application are starting")
        application.wait()
        _seed(stack)
    except EmbeddedError as error:
        typer.echo(f"hw up: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _interrupted(state)
    _say(f"all is ready after {time.monotonic() - started:.0f} s")
    _table(stack)


def restart(state: State = DEFAULT_STATE) -> None:
    """Restart the application alone, with the options of the last `hw up`."""
    stack = _saved(state, checked=True)
    if stack is None or not _any_runs(stack):
        typer.echo("nothing runs; start it with `make up`", err=True)
        raise typer.Exit(1)
    from hw_server.embedded import EmbeddedError

    application = stack.processes[APP]
    try:
        application.stop()
        application.start()
        application.wait()
    except EmbeddedError as error:
        typer.echo(f"hw restart: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _interrupted(state)
    _say(f"{APP} is ready")


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
        stack.stop(_say)
    elif name not in stack.processes:
        typer.echo(f"there is no process {name}; processes: {', '.join(stack.processes)}", err=True)
        raise typer.Exit(1)
    else:
        _say(f"{name} stopped" if stack.processes[name].stop() else f"{name} does not run")


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
    """Show a process's log."""
    path = state / "logs" / f"{name}.log"
    if not path.exists():
        existing = ", ".join(sorted(log.stem for log in (state / "logs").glob("*.log"))) or "none yet"
        typer.echo(f"there is no log of {name}; logs: {existing}", err=True)
        raise typer.Exit(1)
    tail = [shutil.which("tail") or "tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
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

    stack.stop(_say)
    remove_data(state)
    shutil.rmtree(state, ignore_errors=True)
    typer.echo("removed")


def running_environment(*, required: bool = True, owner: bool = True) -> dict[str, str]:
    """The settings that the application of a native stack that runs is given, under those of the caller's own environment; with
    those of the tables' owner, unless `owner` is False. Where none runs and the environment names no server, exits with 1, unless
    `required` is False."""
    stack = _saved(Path(os.environ.get("HW_STATE", DEFAULT_STATE)))
    if stack is not None and _any_runs(stack):
        environment = dict(stack.processes[APP].spec.environment)
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
        told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
        if told.returncode != 0:
            raise EmbeddedError(f"migrations failed: {told.stderr.strip()[-300:]}")


def _under_own(settings: dict[str, str]) -> dict[str, str]:
    """The caller's environment wins, also where it names a file that holds the value."""
    return {name: value for name, value in settings.items() if f"{name}_FILE" not in os.environ} | dict(os.environ)


def _application(stack: "Stack", workers: int, *, reload: bool, checked: bool = True) -> "ProcessSpec":
    """Exits with 2 where the settings are wrong, which only matters (`checked`) where it is to be started."""
    from hw_server.embedded import ProcessSpec
    from hw_server.embedded.process import serves

    environment = _under_own(stack.environment()) | {"HW_STATE": str(stack.state), "HW_HTTP__WORKERS": str(workers)}
    if stack.origins:
        environment[ORIGINS] = ",".join(stack.origins)
    if environment.get("HW_ENVIRONMENT") != "production" and "HW_LOG__FORMAT_FILE" not in environment:
        environment.setdefault("HW_LOG__FORMAT", "console")
    options = ["--reload"] if reload else []
    return ProcessSpec(
        name=APP,
        port=stack.ports.app,
        command=[sys.executable, "-m", "hw_server.cli", "serve", "--port", str(stack.ports.app), *options],
        environment=environment,
        ready=lambda: serves(f"http://127.0.0.1:{stack.ports.app}/health"),
        prepare=lambda: _migrate(stack),
        option="--port",
        started_from=_started_from(environment, options, reload=reload) if checked else {},
    )


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
    stack.add(_application(stack, saved.get("workers", 1), reload=saved.get("reload", False), checked=checked))
    return stack


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
    typer.echo(f"  {line}")


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
                    {**row, **{field: found[number % len(found)] for field, found in ids.items() if found}}
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


def _table(stack: "Stack") -> None:
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
