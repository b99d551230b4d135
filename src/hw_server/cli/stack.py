"""`hw up`, `down`, `status`, `logs`, `clean`: the native stack with the application."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hw_server.embedded import ProcessSpec, Stack
    from hw_server.operations import Feature

APP = "hw-server"
SEEDING_USER = "dave"  # has all roles
State = Annotated[
    Path,
    typer.Option(
        "--state",
        envvar="HWSTATE",
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
    state: State = DEFAULT_STATE,
) -> None:
    """Start PostgreSQL, Valkey, an identity provider and the application in the background."""
    try:
        from hw_server.embedded import EmbeddedError, Ports, Stack
        from hw_server.embedded import keycloak as real_keycloak
        from hw_server.embedded.process import Process
    except ModuleNotFoundError as error:
        typer.echo(f"hw up: {error.name} is not installed; `make venv` installs what the native stack needs", err=True)
        raise typer.Exit(1) from None

    ports = Ports(port, postgres_port, redis_port, oidc_port)
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
        stack = Stack(state, ports, "keycloak" if keycloak else "nanoidp")
        application = Process(_application(stack, workers), stack.state)
        application.refuse_taken_port()
        stack.refuse_taken_ports()
        state.mkdir(parents=True, exist_ok=True)
        _settings_file(state).write_text(json.dumps({"ports": asdict(ports), "provider": stack.provider}))
        stack.start(_say)
        if application.start():
            _say("migrations and application are starting")
        application.wait()
    except EmbeddedError as error:
        typer.echo(f"hw up: {error}", err=True)
        raise typer.Exit(1) from None
    _seed(stack)
    _say(f"all is ready after {time.monotonic() - started:.0f} s")
    _table(stack)


def down(state: State = DEFAULT_STATE) -> None:
    """Stop everything that `hw up` started; the data stays."""
    stack = _saved(state)
    if stack is None or not _any_runs(stack):
        typer.echo("nothing runs")
        return
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
    """Show a process's log."""
    path = state / "logs" / f"{name}.log"
    if not path.exists():
        existing = ", ".join(sorted(log.stem for log in (state / "logs").glob("*.log"))) or "none yet"
        typer.echo(f"there is no log of {name}; logs: {existing}", err=True)
        raise typer.Exit(1)
    tail = shutil.which("tail") or "tail"
    options = ["-F"] if follow else []
    raise typer.Exit(subprocess.run([tail, "-n", str(lines), *options, str(path)], check=False).returncode)  # noqa: S603


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


def running_environment(state: Path | None = None) -> dict[str, str]:
    """The settings of the application that `hw up` started, under those of the caller's own environment."""
    stack = _saved(state or Path(os.environ.get("HWSTATE", DEFAULT_STATE)))
    return _under_own(stack.environment() | _owner(stack) if stack else {})


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


def _application(stack: "Stack", workers: int = 1) -> "ProcessSpec":
    from hw_server.embedded import ProcessSpec
    from hw_server.embedded.process import serves

    port = str(stack.ports.app)
    return ProcessSpec(
        name=APP,
        port=stack.ports.app,
        command=[sys.executable, "-m", "hw_server.cli", "serve", "--workers", str(workers), "--port", port],
        environment=_under_own(stack.environment()),
        ready=lambda: serves(f"http://127.0.0.1:{stack.ports.app}/health"),
        prepare=lambda: _migrate(stack),
        option="--port",
    )


def _saved(state: Path) -> "Stack | None":
    """The stack as the last `hw up` described it."""
    try:
        saved = json.loads(_settings_file(state).read_text())
    except (OSError, ValueError):
        return None
    from hw_server.embedded import Ports, Stack  # a server alone is installed without it

    stack = Stack(state, Ports(**saved["ports"]), saved["provider"])
    stack.add(_application(stack))
    return stack


def _settings_file(state: Path) -> Path:
    return state / "stack.json"


def _any_runs(stack: "Stack") -> bool:
    return any(process.pid is not None for process in stack.processes.values())


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
    environment = {**os.environ, "HWSTATE": str(stack.state)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if result.returncode != 0:
        typer.echo(f"  no rows were added: {result.stderr.strip()}", err=True)
        return
    headers = {"Authorization": f"Bearer {result.stdout.strip()}"}
    with httpx.Client(headers=headers, timeout=10, trust_env=False) as http:
        for seed in seeds:
            response = http.get(f"{base}{seed.path}?per_page=1")
            if response.status_code == 200 and not response.json()["items"]:
                added = [http.post(f"{base}{seed.path}", json=dict(row)).status_code for row in seed.rows]
                _say(f"{added.count(201)} {seed.path.strip('/')} added")


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
            f"{identity}/admin (admin / admin)" if stack.provider == "keycloak" else identity,
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
