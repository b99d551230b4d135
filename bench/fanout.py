"""Fan-out: one event to many signed-in, subscribed sockets, against the same server that writes one ready frame to as many.

python -m bench.fanout URL TOKEN SOCKETS             holds sockets subscribed to the topic `bench`; prints `open`, then a line with
                                                     the number of text frames received so far whenever a whole round has arrived
python -m bench.fanout URL TOKEN SOCKETS MISSED      all of them come back at once after missing so many events; prints the seconds
                                                     until each has recovered
"""

import asyncio
import json
import sys
import time
from typing import Any

import httpx
import uvloop
from pydantic import BaseModel, ConfigDict
from tests import notes
from tests.notes import repository
from tests.notes.models import Note, NoteCreate

from bench.sockets import Client, masked
from bench.sockets import connect as connect_sockets
from hw_server.operations import AfterCommit, CountCache, Events, Feature, Operations, Provided, Topic, Write
from hw_server.ws.hub import Hub
from hw_server.ws.protocol import text_frame

SUBSCRIBE = b'{"jsonrpc":"2.0","id":1,"method":"topic.subscribe","params":{"topic":"bench"}}'
TEXT = "x" * 170  # with its envelope an event of about 200 bytes
AT_ONCE = 250  # handshakes of sockets that come back
WRITES = 250  # as the broker: the event loop has its turn in between
operations = Operations("/bench")


class Event(BaseModel):
    text: str


class Stamped(BaseModel):
    at: float  # seconds since 1970


class Times(BaseModel):
    model_config = ConfigDict(extra="forbid")

    times: int = 1


BENCH = Topic("bench", Event, subscribe="notes:read")
STAMPED = Topic("bench/stamped", Stamped, subscribe="notes:read")
DIRECT = Topic("bench/direct", Stamped, subscribe="notes:read", publish="notes:write", ephemeral=True)
TOPICS = (BENCH, STAMPED, DIRECT)


@operations.post("bench.publish", "/publish", role="notes:write")
async def publish(db: Write, query: Times, events: Events) -> None:
    """Publish an event so many times in one transaction."""
    for _ in range(query.times):
        events.publish(BENCH, Event(text=TEXT))


@operations.post("bench.create", "/notes", role="notes:write", status=201)
async def create(db: Write, body: NoteCreate, counts: Provided[CountCache], after: AfterCommit, events: Events) -> Note:
    """Create a note, as `notes.create` does, with an event that says when it was published."""
    after.append(counts.invalidate("notes"))
    note = await repository.insert(db, body)
    events.publish(STAMPED, Stamped(at=time.time()))
    return note


@operations.post("bench.write", "/write", role="notes:write", reads=True)
async def write(hub: Provided[Hub]) -> None:
    """The floor: write one ready frame to every socket."""
    frame = text_frame(b'{"jsonrpc":"2.0","method":"topic.event","params":{"data":"%s"}}' % (TEXT.encode(),))
    for written, connection in enumerate(list(hub.connections), 1):
        connection.write_event(frame)
        if written % WRITES == 0:
            await asyncio.sleep(0)


FEATURES = (*notes.FEATURES, Feature("bench", operations, topics=TOPICS))


class Subscriber(Client):
    """Counts frames by their bytes; a round is whole when every socket has it."""

    received = 0
    sockets = 0

    def begin(self) -> None:
        self._transport.write(masked(SUBSCRIBE))

    def _count(self, data: bytes) -> bytes:
        position = 0
        while position + 2 <= len(data):
            size, head = data[position + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[position + 2 : position + 4], "big"), 4
            if position + head + size > len(data):
                break
            if data[position] == 0x81:
                Subscriber.received += 1
                if Subscriber.received % Subscriber.sockets == 0:
                    print(Subscriber.received, flush=True)
            position += head + size
        return data[position:]


async def hold(url: str, token: str, count: int) -> None:
    Subscriber.sockets = count
    clients = await connect_sockets(url, token, count, 0, Subscriber)
    print("open", flush=True)
    for client in clients:
        client.begin()
        await asyncio.sleep(0)
    await asyncio.sleep(600)


class Returning(Client):
    """Subscribes with a position, and is done once its answer is here."""

    subscribe = b""
    missed = 0

    def begin(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._transport.write(masked(self.subscribe))

    def _count(self, data: bytes) -> bytes:
        while len(data) >= 4:
            size, head = data[1], 2
            if size == 126:
                size, head = int.from_bytes(data[2:4], "big"), 4
            if len(data) < head + size:
                break
            if data[0] == 0x81 and not self.answer.done():
                self.answer.set_result(data[head : head + size])
            data = data[head + size :]
        return data

    def close(self) -> None:
        self._transport.abort()


async def recover(url: str, token: str, count: int, missed: int) -> None:
    Returning.subscribe = SUBSCRIBE
    clients = await connect_sockets(url, token, count, 0, Returning)
    position = (await _answers(clients))[0]
    for client in clients:
        client.close()  # type: ignore[attr-defined]
    base = url.removesuffix("/web")
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
        (await http.post(f"{base}/api/bench/publish?times={missed}")).raise_for_status()
        while (await http.get(f"{base}/api/topics/history?topic=bench")).json()["offset"] < position["offset"] + missed:
            await asyncio.sleep(0.01)
    request = json.loads(SUBSCRIBE)
    request["params"]["recover"] = {name: position[name] for name in ("epoch", "offset")}
    Returning.subscribe = json.dumps(request).encode()
    started = time.perf_counter()
    shares = [connect_sockets(url, token, count // AT_ONCE, 0, Returning) for _ in range(AT_ONCE)]
    answers = await _answers([client for share in await asyncio.gather(*shares) for client in share])
    seconds = time.perf_counter() - started
    if lost := [answer for answer in answers if not answer["recovered"] or len(answer["events"]) != missed]:
        raise RuntimeError(f"{len(lost)} of {count} sockets did not recover: {lost[0]}")
    print(seconds, flush=True)


async def _answers(clients: "list[Client]") -> "list[Any]":
    for client in clients:
        client.begin()
    answers = await asyncio.gather(*(client.answer for client in clients))  # type: ignore[attr-defined]
    return [json.loads(answer)["result"] for answer in answers]


def rounds(url: str, token: str, path: str, count: int, lines: "object") -> None:
    """Asks for so many rounds, one after the other; each has arrived everywhere before the next begins."""
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        for _ in range(count):
            client.post(f"{url}/api/bench/{path}").raise_for_status()
            lines.readline()  # type: ignore[attr-defined]


if __name__ == "__main__":
    url, token, sockets, *missed = sys.argv[1:]
    uvloop.run(recover(url, token, int(sockets), int(missed[0])) if missed else hold(url, token, int(sockets)))
