"""Words said in a room, which its subscribers hear."""

from random import randrange
from typing import Any

import httpx


def room() -> int:
    return randrange(1, 500)


async def say(client: httpx.AsyncClient, number: int, text: str, status: int = 201, **query: Any) -> None:
    response = await client.post(f"/api/rooms/{number}/words", json={"text": text}, params=query)
    assert response.status_code == status, response.text
