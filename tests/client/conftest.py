"""Two servers with rooms that share their topics, and the client."""

from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest

from hw_client import Backoff, Client
from tests.conftest import Running, Serve

# Without a key prefix of their own: all servers of a test run relay the events of one database, and so to one Redis.
ROOMS = {"HW_FEATURES": "tests.rooms:FEATURES"}
QUICK = Backoff(first=0.05, longest=0.5)


@pytest.fixture(scope="package")
def rooms(serve: Serve) -> Iterator[Running]:
    with serve(**ROOMS) as running:
        yield running


@pytest.fixture
async def speaker(rooms: Running, token: Callable[[str], str]) -> AsyncIterator[httpx.AsyncClient]:
    async with rooms.client(token("alice")) as client:
        yield client


@pytest.fixture
def bob(rooms: Running, token: Callable[[str], str]) -> Client:
    return Client(rooms.url, token=lambda: token("bob"), backoff=QUICK, trust_env=False)
