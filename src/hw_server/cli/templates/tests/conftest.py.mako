"""What ${plural_words} stand on: a server with the shipped features, and ${"rows of " + ancestors[-1].plural_words if ancestors else "users with their roles"}."""

% if ancestors:
import uuid
from collections.abc import AsyncIterator
% endif
from typing import Any

% if ancestors:
import httpx
% endif
import pytest

from tests.shipped import server, token

__all__ = ["server", "token"]


% for ancestor in ancestors:
@pytest.fixture
async def ${ancestor.singular}_id(alice: httpx.AsyncClient${f", {ancestors[loop.index - 1].singular}_id: int" if loop.index else ""}) -> AsyncIterator[int]:
    body = {"name": str(uuid.uuid4())${f', "{ancestors[loop.index - 1].singular}_id": {ancestors[loop.index - 1].singular}_id' if loop.index else ""}}
    made = await alice.post("/api${ancestor.path}", json=body)
    assert made.status_code == 201, made.text
    yield made.json()["id"]
    await alice.delete(f"/api${ancestor.path}/{made.json()['id']}")


% endfor
@pytest.fixture
% if ancestors:
def fields(${ancestors[-1].singular}_id: int) -> dict[str, Any]:
    """What a body needs beside its name."""
    return {"${ancestors[-1].singular}_id": ${ancestors[-1].singular}_id}
% else:
def fields() -> dict[str, Any]:
    """What a body needs beside its name: nothing so far."""
    return {}
% endif
