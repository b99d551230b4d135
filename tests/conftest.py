"""Real servers for the tests: one stack for each test process, on free ports, in a temporary folder."""

import asyncio
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import asyncpg
import httpx
import pytest
import websockets
from playwright.sync_api import Browser, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from hw_server.embedded import Ports, Stack
from tests.forked import Forked
from tests.notes import environment as notes
from tests.provider import Provider

# The certificates of the system, which httpx reads for every client: 20 ms each, and no test speaks TLS through it.
httpx._transports.default.create_ssl_context = functools.cache(httpx._transports.default.create_ssl_context)

PROJECT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing beyond this machine is looked up: a provider's sign-in page that wants its fonts from elsewhere waits for none.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE *.localhost, EXCLUDE 127.0.0.1",
]


# Below the range from which the kernel takes the ports of outgoing connections: none of them can get in between. A
# block for each test process; every other port, as Keycloak also takes the next one.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_BLOCK = range(10_000 + _WORKER % 10 * 2_000, 12_000 + _WORKER % 10 * 2_000, 2)
_ports = cycle([*_BLOCK[os.getpid() % 1_000 :], *_BLOCK[: os.getpid() % 1_000]])


# Minutes each: begun last, one of them would run alone.
_LONGEST = ("test_schemathesis.py", "test_edit_loop.py", "test_new.py", "test_outages.py", "test_keycloak.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


def free_port() -> int:
    """A port on which nothing listens, and which no other test is given."""
    return next(port for port in _ports if _free(port) and _free(port + 1))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass
class Running:
    """A server under test: `hw serve` in a process of its own."""

    url: str
    process: "subprocess.Popen[bytes] | Forked"
    log_file: Path
    environment: dict[str, str]

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1) + "/web"

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().split("\n") if line.startswith("{")]

    def lines_of(self, request_id: str) -> list[dict[str, Any]]:
        """The lines that tell of a finished request, call or refused handshake."""
        finished = ("request", "call", "socket_refused")
        return [line for line in self.log() if line.get("request_id") == request_id and line["event"] in finished]

    async def metrics(self) -> dict[str, float]:
        """Samples by their text, labels in the order of the alphabet: `ws_messages_total{direction="in"}`."""
        async with self.client() as client:
            text = (await client.get("/metrics")).text
        return {
            sample.name + (f"{{{','.join(labels)}}}" if labels else ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            for labels in [sorted(f'{name}="{value}"' for name, value in sample.labels.items())]
        }

    def client(self, token: str | None = None, **options: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20, **options)

    def socket(self, token: str | None = None, **options: Any) -> "Socket":
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        options.setdefault("additional_headers", headers)
        return Socket(websockets.connect(self.ws_url, proxy=None, **options))


class Socket:
    """A JSON-RPC client of one socket."""

    def __init__(self, connecting: Any) -> None:
        self._connecting = connecting
        self._next = 0

    async def __aenter__(self) -> "Socket":
        self.raw = await self._connecting.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._connecting.__aexit__(*error)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._next += 1
        await self.raw.send(json.dumps({"jsonrpc": "2.0", "id": self._next, "method": method, "params": params}))
        while (response := await self.read()).get("id") != self._next:
            continue
        return response

    async def read(self) -> Any:
        return json.loads(await asyncio.wait_for(self.raw.recv(), 20))

    async def closed(self) -> tuple[int, str]:
        """Waits for the end; messages before it are skipped."""
        async with asyncio.timeout(20):
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await self.raw.recv()
        return self.raw.close_code, self.raw.close_reason


Serve = Callable[..., AbstractContextManager[Running]]


@contextmanager
def run_stack(provider: Literal["nanoidp", "keycloak"] = "nanoidp") -> Iterator[Stack]:
    """Real servers on free ports with the table of notes, and their data in a folder that goes away with them."""
    folder = Path(tempfile.mkdtemp(prefix="hw-test-"))
    folder.chmod(0o755)
    stack = Stack(folder, Ports(free_port(), free_port(), free_port(), free_port()), provider, notes.USERS)
    try:
        stack.start()
        asyncio.run(notes.create_table(stack))
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with run_stack() as stack:
        yield stack


@contextmanager
def run_server(environment: dict[str, str], folder: Path, *arguments: str) -> Iterator[Running]:
    """`hw serve` with the settings of `environment`; it serves notes unless they say otherwise."""
    environment = {**notes.SETTINGS, **environment}
    port = environment["HW_HTTP__PORT"]
    assert _free(int(port)), f"what answers on port {port} would be taken for this server"
    log_file = folder / f"server-{port}-{time.monotonic_ns()}.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HW_")}
    clean["TMPDIR"] = str(folder)  # what a killed server leaves behind goes away with the folder
    # A stack that the developer runs beside the tests is none of theirs.
    clean["HW_STATE"] = str(folder / "none")
    # Other code, or another interpreter, takes nothing that is imported already.
    start = _start if any(name.startswith("PYTHON") for name in environment) else Forked
    process = start(["serve", *arguments], {**clean, **environment}, PROJECT, log_file)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health/live", log_file)
        yield Running(f"http://127.0.0.1:{port}", process, log_file, environment)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(40)


def _start(
    arguments: list[str], environment: dict[str, str], folder: Path, log_file: Path
) -> "subprocess.Popen[bytes] | Forked":
    command = [sys.executable, "-m", "hw_server.cli", *arguments]  # finds `tests` in its working directory
    with log_file.open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)


def _wait(process: "subprocess.Popen[bytes] | Forked", url: str, log_file: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log_file.read_text()
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"the server did not answer:\n{log_file.read_text()}")


@pytest.fixture(scope="session")
def serve(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """`with serve(HW_...="...") as running:` a server of its own with other settings."""

    def start(*arguments: str, **settings: str) -> AbstractContextManager[Running]:
        spill = tmp_path_factory.mktemp("spill")
        environment = {**stack.environment(), "HW_HTTP__PORT": str(free_port()), "HW_AUDIT__SPILL_DIR": str(spill)}
        if any(name.startswith("HW_RATELIMIT__") for name in settings):
            # What is counted against limits of its own counts for no other server.
            environment["HW_REDIS__KEY_PREFIX"] = f"{uuid.uuid4().hex}:"
        return run_server({**environment, **settings}, tmp_path_factory.mktemp("log"), *arguments)

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Running]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def local(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """On the port whose pages the provider lets in: for browsers."""
    with run_server(stack.environment(), tmp_path_factory.mktemp("log")) as running:
        yield running


@pytest.fixture(scope="session")
def token(stack: Stack) -> Callable[[str], str]:
    """A real access token of a development user; cached."""
    cached: dict[str, str] = {}

    def fresh(user: str) -> str:
        if user not in cached:
            cached[user] = sign_in(stack, user)["access_token"]
        return cached[user]

    return fresh


def sign_in(stack: Stack, user: str) -> dict[str, Any]:
    form = {"grant_type": "password", "client_id": "hw-web", "username": user, "password": user, "scope": "openid"}
    base = stack.environment()["HW_OIDC__ISSUER"]
    endpoint = httpx.get(f"{base}/.well-known/openid-configuration").json()["token_endpoint"]
    tokens: dict[str, Any] = httpx.post(endpoint, data=form, timeout=10).raise_for_status().json()
    return tokens


@pytest.fixture
async def alice(server: Running, token: Callable[[str], str]) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client(token("alice")) as client:
        yield client


@pytest.fixture
async def dave(server: Running, token: Callable[[str], str]) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client(token("dave")) as client:
        yield client


@pytest.fixture
async def database(stack: Stack, server: Running) -> AsyncIterator[asyncpg.Connection]:
    """A connection of our own, whom nothing is forbidden."""
    connection = await asyncpg.connect(f"postgresql://postgres:postgres@127.0.0.1:{stack.ports.postgres}/hw_db")
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """An OpenID provider of our own: signs what a test asks for."""
    with Provider.running() as provider:
        yield provider


@pytest.fixture(scope="session")
def guarded(serve: Serve, provider: Provider) -> Iterator[Running]:
    """A server that trusts `provider`."""
    with serve(**provider.settings()) as running:
        yield running


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless; in continuous integration it may not be missing."""
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


async def until(check: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true result of `check`, sync or async."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = check()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen in time")
