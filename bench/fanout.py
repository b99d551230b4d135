"""Fan-out: one event to many signed-in, subscribed sockets, against the same server that writes one ready frame to as many.

python -m bench.fanout URL TOKEN SOCKETS     holds sockets subscribed to the topic `bench`; prints `open`, then a line with the
number of text frames received so far whenever a whole round has arrived
"""

import asyncio
import sys

import httpx
import uvloop
from pydantic import BaseModel, ConfigDict
from tests import notes

from bench.sockets import Client, masked
from bench.sockets import connect as connect_sockets
from hw_server.operations import Events, Feature, Operations, Provided, Topic, Write
from hw_server.ws.hub import Hub
from hw_server.ws.protocol import text_frame

SUBSCRIBE = b'{"jsonrpc":"2.0","id":1,"method":"topic.subscribe","params":{"topic":"bench"}}'
TEXT = "x" * 170  # with its envelope an event of about 200 bytes
WRITES = 250  # as the broker: the event loop has its turn in between
operations = Operations("/bench")


class Event(BaseModel):
    text: str


class Times(BaseModel):
    model_config = ConfigDict(extra="forbid")

    times: int = 1


BENCH = Topic("bench", Event, subscribe="notes:read")


@operations.post("bench.publish", "/publish", role="notes:write")
async def publish(db: Write, query: Times, events: Events) -> None:
    """Publish an event so many times in one transaction."""
    for _ in range(query.times):
        events.publish(BENCH, Event(text=TEXT))


@operations.post("bench.write", "/write", role="notes:write", reads=True)
async def write(hub: Provided[Hub]) -> None:
    """The floor: write one ready frame to every socket."""
    frame = text_frame(b'{"jsonrpc":"2.0","method":"topic.event","params":{"data":"%s"}}' % (TEXT.encode(),))
    for written, connection in enumerate(list(hub.connections), 1):
        connection.write_event(frame)
        if written % WRITES == 0:
            await asyncio.sleep(0)


FEATURES = (*notes.FEATURES, Feature("bench", operations, topics=(BENCH,)))


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


def rounds(url: str, token: str, path: str, count: int, lines: "object") -> None:
    """Asks for so many rounds, one after the other; each has arrived everywhere before the next begins."""
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        for _ in range(count):
            client.post(f"{url}/api/bench/{path}").raise_for_status()
            lines.readline()  # type: ignore[attr-defined]


if __name__ == "__main__":
    url, token, sockets = sys.argv[1:]
    uvloop.run(hold(url, token, int(sockets)))
