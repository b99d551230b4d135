"""Changing code and settings while the native stack runs."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hw_server.embedded.process import serves
from hw_server.settings import load
from tests.conftest import PROJECT, Serve, free_port, until
from tests.shell import BIN, Shell

FEATURE = """
from fastapi import APIRouter
from hw_server import audit, sessions
from hw_server.http.dependencies import public
from hw_server.operations import Feature

router = APIRouter()


@router.get("/word", dependencies=[public()])
async def word() -> str:
    return "WORD"


FEATURES = (audit.feature, sessions.feature, Feature("shop", router=router))
"""
ORIGIN = "http://localhost:5173"


class Shop:
    """A feature outside the project, which tests change."""

    def __init__(self, folder: Path) -> None:
        self.module = folder / "shop/__init__.py"
        self.module.parent.mkdir()
        self.settings = {"HW_FEATURES": "shop:FEATURES", "PYTHONPATH": f"{folder}:{PROJECT}"}
        self.says("one")

    def says(self, word: str) -> None:
        self.module.write_text(FEATURE.replace("WORD", word))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def shell(shop: Shop) -> Iterator[Shell]:
    with Shell.temporary() as shell:
        yield shell


def word(url: str) -> str:
    return str(httpx.get(f"{url}/api/word", timeout=20).json())


def up(shell: Shell, shop: Shop, *more: str, **settings: str) -> subprocess.CompletedProcess[str]:
    ports = [part for pair in shell.ports.items() for part in pair]
    return shell.run("up", *ports, *more, **{**shop.settings, **settings})


def application(shell: Shell) -> object:
    return shell.status()["hw-server"]["pid"]


async def test_a_saved_file_is_served(serve: Serve, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with serve("--reload", **shop.settings) as running:
        assert word(running.url) == "one"
        shop.says("two")
        await until(lambda: word(running.url) == "two")


async def test_a_syntax_error_is_shown_and_the_next_save_recovers(serve: Serve, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with serve("--reload", **shop.settings) as running:
        shop.module.write_text("def broken(:\n")
        await until(lambda: "waiting for a change" in running.log_file.read_text())
        assert "SyntaxError" in running.log_file.read_text()
        shop.says("three")
        assert word(running.url) == "three"  # the request waits until there is a worker


async def test_what_cannot_start_ends(serve: Serve, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.module.write_text("def broken(:\n")
    with pytest.raises(AssertionError, match="SyntaxError"), serve("--reload", **shop.settings):
        pass


def test_reload_runs_one_worker(shell: Shell) -> None:
    for command in ("up", "serve"):
        refused = shell.run(command, "--reload", "--workers", "2")
        assert (refused.returncode, "runs one worker" in refused.stderr) == (2, True)


def test_up_restarts_what_changed_and_says_so(shell: Shell, shop: Shop) -> None:
    assert up(shell, shop).returncode == 0
    url, first = f"http://127.0.0.1:{shell.ports['--port']}", application(shell)
    assert "restarted" not in up(shell, shop).stdout
    assert application(shell) == first
    shop.says("four")
    assert "hw-server is restarted: its code changed" in up(shell, shop).stdout
    assert word(url) == "four"
    assert "its settings changed" in up(shell, shop, HW_HTTP__MAX_BODY_BYTES="2000").stdout
    assert "its settings and options changed" in up(shell, shop, "--reload").stdout
    assert up(shell, shop).stdout.count("running already") == 3


def test_settings_are_shown_as_the_application_uses_them(shell: Shell, shop: Shop) -> None:
    up(shell, shop, "--workers", "2", "--origin", ORIGIN)
    rows = json.loads(shell.run("config", "show", "--json", **shop.settings).stdout)
    used = {row["name"]: row["value"] for row in rows}
    shown = [used[name] for name in ("log.format", "http.workers", "http.cors_origins", "http.port")]
    assert shown == ["console", "2", ORIGIN, shell.ports["--port"]]
    assert "its settings changed" in up(shell, shop).stdout


def test_wrong_settings_fail_at_up_and_restart(shell: Shell, shop: Shop) -> None:
    up(shell, shop)
    before = application(shell)
    for command in (up(shell, shop, HW_LOG__LEVEL="loud"), shell.run("restart", HW_LOG__LEVEL="loud")):
        assert (command.returncode, command.stderr.partition(":")[0]) == (2, "log.level")
    assert application(shell) == before


def test_restart_restarts_the_application_alone(shell: Shell, shop: Shop) -> None:
    up(shell, shop, "--origin", ORIGIN)
    before = shell.status()
    assert shell.run("restart", **shop.settings).returncode == 0
    after = shell.status()
    assert {name for name in after if before[name]["pid"] != after[name]["pid"]} == {"hw-server"}
    assert allowed(shell.ports["--port"])


def allowed(port: str) -> bool:
    response = httpx.get(f"http://127.0.0.1:{port}/health", headers={"Origin": ORIGIN})
    return response.headers.get("access-control-allow-origin") == ORIGIN


def test_a_front_end_on_another_origin_signs_in(shell: Shell, shop: Shop) -> None:
    up(shell, shop)
    assert not allowed(shell.ports["--port"])
    output = up(shell, shop, "--origin", ORIGIN, "--origin", "http://localhost:5174").stdout
    assert "nanoidp is restarted" in output
    assert allowed(shell.ports["--port"])
    query = {
        "response_type": "code", "client_id": "hw-web", "redirect_uri": f"{ORIGIN}/callback", "state": "x",
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM", "code_challenge_method": "S256",
    }  # fmt: skip
    page = httpx.get(f"http://127.0.0.1:{shell.ports['--oidc-port']}/authorize", params=query)
    assert (page.status_code, 'name="username"' in page.text) == (200, True)
    refused = up(shell, shop, "--origin", "localhost:5173")
    assert (refused.returncode, refused.stderr.partition(":")[0]) == (2, "http.cors_origins")


async def test_logs_are_readable(shell: Shell, shop: Shop) -> None:
    up(shell, shop)
    word(f"http://127.0.0.1:{shell.ports['--port']}")
    await until(lambda: "[info] request method=GET route=/api/word status=200" in shell.run("logs").stdout)
    output = shell.run("logs").stdout
    assert "\x1b" not in output, "no colours where no terminal is"
    assert "\x1b" in (shell.state / "logs/hw-server.log").read_text()
    up(shell, shop, HW_LOG__FORMAT="json")
    assert json.loads(shell.run("logs", "-n", "1").stdout)["event"]


def test_commands_take_the_settings_of_a_running_stack(shell: Shell, shop: Shop) -> None:
    up(shell, shop)
    shown = {item["variable"]: item["value"] for item in json.loads(shell.run("config", "show", "--json").stdout)}
    assert shown["HW_HTTP__PORT"] == shell.ports["--port"]
    assert shell.ports["--redis-port"] in shown["HW_REDIS__URL"]
    assert shell.run("config", "check", HW_HTTP__PORT="0").returncode == 2


def test_serve_takes_the_place_of_the_application(shell: Shell, shop: Shop, tmp_path: Path) -> None:
    up(shell, shop)
    taken = shell.run("serve")
    assert (taken.returncode, "hw down hw-server" in taken.stderr) == (1, True)
    assert "hw-server stopped" in shell.run("down", "hw-server").stdout
    environment = {**os.environ, **shop.settings, "HW_STATE": str(shell.state)}
    with (tmp_path / "log").open("wb") as log:
        served = subprocess.Popen([str(BIN / "hw"), "serve"], env=environment, stdout=log, stderr=log, cwd=PROJECT)
    try:
        url = f"http://127.0.0.1:{shell.ports['--port']}"
        asyncio.run(until(lambda: serves(f"{url}/health")))
    finally:
        served.terminate()
        assert served.wait(30) == 0


async def test_a_traceback_is_text_on_the_console(serve: Serve, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.module.write_text(shop.module.read_text().replace('return "one"', 'raise RuntimeError("oh")'))
    with serve(**shop.settings, HW_LOG__FORMAT="console") as running:
        async with running.client() as client:
            assert (await client.get("/api/word")).status_code == 500
        [output] = await until(lambda: [text for text in [running.log_file.read_text()] if "RuntimeError: oh" in text])
    assert 'raise RuntimeError("oh")\n' in output


def test_options_of_the_command_are_no_settings() -> None:
    assert load({"HW_STATE": "/somewhere", "HW_PASSWORD": "x"}) == load({})


def test_a_stack_that_is_down_is_said_so(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "none")
    for command in (("audit", "list"), ("sessions", "list"), ("migrate", "status")):
        refused = shell.run(*command)
        assert (refused.returncode, "make up" in refused.stderr) == (1, True), command
    port = free_port()
    named = shell.run("migrate", "status", HW_DATABASE__URL=f"postgresql://a:b@127.0.0.1:{port}/x")
    assert (named.returncode, "make up" in named.stderr) == (1, False)
