"""Random and mutated messages on the socket: whatever comes, the answer is JSON and the log has no traceback."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websockets

from tests.conftest import Running, Serve

SEED, MESSAGES, SOCKETS, BURST = 20261124, 60_000, 6, 50
METHODS = [
    "notes.list", "notes.get", "notes.create", "notes.update", "notes.count", "notes.tagged", "audit.list", "audit.get",
    "sessions.list", "sessions.get", "me.get", "ping", "rpc.discover", "session.refresh", "session.authenticate", "x", "",
]  # fmt: skip
NUMBERS = [
    "0",
    "-1",
    "1e999",
    "-1e999",
    "1e400",
    "9" * 40,
    "9223372036854775808",
    "0.1",
    "-0",
    "NaN",
    "Infinity",
    "1E5",
]
TEXTS = ["", "a", "\\u0000", "\\ud800", "\\udfff\\ud800", "\\uffff", "é", "\U0001f600", "%00", "' OR 1=1 --", "2026-02-30",
         "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x" * 300, "{id}", "null", "1"]  # fmt: skip
FIELDS = [
    "id",
    "title",
    "text",
    "due",
    "cursor",
    "page",
    "per_page",
    "sort",
    "tags",
    "since",
    "until",
    "user",
    "sid",
    "token",
    "body",
]


def value(pick: random.Random, depth: int = 0) -> str:
    """JSON, or nearly."""
    kind = pick.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return pick.choice(NUMBERS)
    if kind == 1:
        return pick.choice(["true", "false", "null", "undefined", "nul", "'a'"])
    if kind < 5:
        return '"' + pick.choice(TEXTS).replace('"', "") + '"'
    if kind == 5:
        return "[" + ",".join(value(pick, depth + 1) for _ in range(pick.randrange(4))) + "]"
    return members(pick, depth)


def members(pick: random.Random, depth: int = 0) -> str:
    names = pick.sample(FIELDS, pick.randrange(4))
    return "{" + ",".join(f'"{name}":{value(pick, depth + 1)}' for name in names) + "}"


def call(pick: random.Random) -> str:
    parts = ['"jsonrpc":"2.0"', f'"method":"{pick.choice(METHODS)}"', f'"params":{members(pick)}']
    if pick.random() < 0.9:
        parts.append(f'"id":{pick.choice(["1", value(pick)])}')
    if pick.random() < 0.1:
        parts[pick.randrange(len(parts))] = f'"{pick.choice(["method", "jsonrpc", "params", "id"])}":{value(pick)}'
    pick.shuffle(parts)
    return "{" + ",".join(parts) + "}"


def message(pick: random.Random) -> str:
    kind = pick.random()
    if kind < 0.05:
        return value(pick)
    if kind < 0.15:
        return "[" + ",".join(call(pick) for _ in range(pick.randrange(5))) + "]"
    text = call(pick)
    if kind < 0.35:
        for _ in range(pick.randint(1, 4)):
            at = pick.randrange(len(text) + 1)
            text = (
                text[:at]
                + pick.choice(['"', "{", "}", "[", "\\", ",", "0", "\x00", "\ufffd", ""])
                + text[at + pick.randrange(3) :]
            )
    return text


def strict(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def unlimited(serve: Serve) -> Iterator[Running]:
    settings = {
        "HW_RATELIMIT__WS_PER_MINUTE": "10000000",
        "HW_LOG__REQUESTS": "false",
        "HW_AUDIT__RECORD_READS": "false",
    }
    with serve(**settings) as running:
        yield running


async def fuzz(running: Running, token: str, seed: int) -> int:
    """Sends its share of the messages; a socket that is closed for what it sent is opened again. Gives the number of answers."""
    pick, sent, answers = random.Random(seed), 0, 0
    while sent < MESSAGES // SOCKETS:
        async with running.socket(token) as socket:
            try:
                while sent < MESSAGES // SOCKETS:
                    for _ in range(BURST):
                        await socket.raw.send(message(pick))
                    sent += BURST
                    await socket.raw.send('{"jsonrpc":"2.0","id":"end of burst","method":"ping"}')
                    answers += await read_burst(socket)
            except websockets.ConnectionClosed:
                assert socket.raw.close_code in (4401, 4429), socket.raw.close_reason
    return answers


async def read_burst(socket: Any) -> int:
    """Reads up to the answer to the last call; those that overtake it are read with the next burst."""
    for number in range(10 * BURST):
        answer = json.loads(await asyncio.wait_for(socket.raw.recv(), 60), parse_constant=strict)
        for item in answer if isinstance(answer, list) else [answer]:
            assert item["jsonrpc"] == "2.0"
            assert ("result" in item) + ("error" in item) + ("method" in item) == 1, item
            assert item.get("error", {}).get("code") != -32603, item
        if isinstance(answer, dict) and answer.get("id") == "end of burst":
            return number + 1
    raise AssertionError("no answer to the last call")


async def test_no_message_breaks_the_server(unlimited: Running, token: Callable[[str], str]) -> None:
    users = [token("dave") if index % 2 else token("bob") for index in range(SOCKETS)]
    async with asyncio.TaskGroup() as sockets:
        tasks = [sockets.create_task(fuzz(unlimited, user, SEED + index)) for index, user in enumerate(users)]
    assert sum(task.result() for task in tasks) > MESSAGES / 2
    async with unlimited.client(token("dave")) as client:
        assert (await client.get("/health")).json()["status"] == "ok"
        assert (await client.get("/api/me")).status_code == 200
    assert "Traceback" not in unlimited.log_file.read_text()
    assert not [line for line in unlimited.log() if line["level"] in ("error", "critical")]
