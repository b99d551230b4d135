"""A stack and two servers for each file: other servers of a test run would relay these topics under names of their own."""

import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import pytest

from hw_server.embedded import Stack
from hw_server.embedded.process import EmbeddedError
from tests.conftest import Running, free_port, run_server, run_stack, sign_in, until
from tests.notes import environment as notes

Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="module")
def fragile() -> Iterator[Stack]:
    """A stack of its own, to be broken."""
    with run_stack() as stack:
        yield stack


@pytest.fixture(scope="module")
def environment(fragile: Stack) -> dict[str, str]:
    unlimited = {"HW_RATELIMIT__HTTP_PER_MINUTE": "10000000", "HW_RATELIMIT__WS_PER_MINUTE": "10000000"}
    return {**fragile.environment(), **notes.SETTINGS, **unlimited, "HW_FEATURES": "tests.rooms:FEATURES"}


@pytest.fixture(scope="module")
def start(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`with start(HW_...="...") as running:` one more server on this stack."""

    @contextlib.contextmanager
    def server(**settings: str) -> Iterator[Running]:
        folder = tmp_path_factory.mktemp("server")
        own = {"HW_HTTP__PORT": str(free_port()), "HW_AUDIT__SPILL_DIR": str(folder / uuid.uuid4().hex)}
        with run_server({**environment, **own, **settings}, folder) as running:
            yield running

    return server


@pytest.fixture(scope="module")
def one(start: Start) -> Iterator[Running]:
    with start() as running:
        yield running


@pytest.fixture(scope="module")
def two(start: Start, one: Running) -> Iterator[Running]:
    with start() as running:
        yield running


@pytest.fixture(scope="module")
def tokens(fragile: Stack) -> dict[str, str]:
    """Access tokens of the development users."""
    return {user: str(sign_in(fragile, user)["access_token"]) for user in ("alice", "bob", "carol", "dave")}


async def kill_valkey(stack: Stack) -> None:
    """Returns once its port is free: the process is gone before its last thread."""
    valkey = stack.processes["valkey"]
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)

    def is_gone() -> bool:
        if valkey.pid is not None:
            return False
        try:
            valkey.refuse_taken_port()
        except EmbeddedError:
            return False
        return True

    await until(is_gone)


@pytest.fixture
async def alice(one: Running, tokens: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with one.client(tokens["alice"]) as client:
        yield client
