"""Random histories of one topic against a model of what its subscribers must see, on real servers."""

import asyncio
import contextlib
import shutil
import uuid
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio as aioredis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hw_server.embedded import Stack
from tests.conftest import Running, Socket, until
from tests.topics.conftest import kill_valkey

KEPT = 5  # events, by the declaration of `short/{id}`
PEOPLE = 3
EXAMPLES = 25

person = st.integers(0, PEOPLE - 1)
step = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 8)),
    st.tuples(st.just("publish"), st.integers(1, 3)),
    st.tuples(st.just("come"), person),
    st.tuples(st.just("come"), person),
    st.tuples(st.just("go"), person),
    st.tuples(st.just("forget history"), st.just(0)),
)
# A restart takes two seconds, so there is at most one in a history.
restart = st.sampled_from([None, None, "kept", "lost"])


@dataclass
class Person:
    """A subscriber: `epoch` and `offset` of what it has seen; `socket` while it is there."""

    number: int
    epoch: str | None = None
    offset: int = 0
    socket: Socket | None = None
    leaving: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)


class World:
    """`texts` are those of the present epoch by offset; those from `oldest` on are in the history."""

    def __init__(self, servers: list[Running], token: str, stack: Stack) -> None:
        self._servers, self._token, self._stack = servers, token, stack
        self._number = uuid.uuid4().int >> 80
        self._topic = f"short/{self._number}"
        self._people = [Person(number) for number in range(PEOPLE)]
        self._epoch = ""
        self._texts: dict[int, str] = {}
        self._oldest = 1

    @property
    def _top(self) -> int:
        return len(self._texts)

    async def run(self, steps: list[tuple[str, Any]]) -> None:
        async with self._servers[0].client(self._token) as self._client:
            try:
                for action, argument in steps:
                    await getattr(self, "_" + action.replace(" ", "_"))(argument)
                for number in range(PEOPLE):
                    await self._come(number)
                await self._publish(1)
            finally:
                for person in self._people:
                    await person.leaving.aclose()

    async def _publish(self, count: int) -> None:
        text = uuid.uuid4().hex
        query = {"family": "short", "times": count}
        response = await self._client.post(f"/api/rooms/{self._number}/words", json={"text": text}, params=query)
        assert response.status_code == 201
        texts = [text] if count == 1 else [f"{text} {index}" for index in range(count)]
        self._texts.update({self._top + 1 + index: each for index, each in enumerate(texts)})
        self._oldest = max(self._oldest, self._top - KEPT + 1)
        await until(self._published)
        for person in self._people:
            if person.socket is not None:
                await self._hears(person, count)

    async def _published(self) -> bool:
        history = await self._history()
        self._epoch = self._epoch or history["epoch"]
        assert history["epoch"] == self._epoch
        return bool(history["offset"] == self._top)

    async def _history(self) -> Any:
        response = await self._client.get("/api/topics/history", params={"topic": self._topic})
        return response.json() if response.status_code == 200 else {"epoch": self._epoch, "offset": -1}

    async def _hears(self, person: Person, count: int) -> None:
        """The next events, each once and in order, and nothing else."""
        assert person.socket is not None
        while count > 0:
            message = await person.socket.read()
            assert message["method"] in ("topic.event", "topic.events"), message
            events = message["params"].get("events", [message["params"]])
            self._takes(person, message["params"]["epoch"], events)
            count -= len(events)
        assert count == 0

    def _takes(self, person: Person, epoch: str, events: list[dict[str, Any]]) -> None:
        assert epoch == self._epoch
        for event in events:
            assert event["offset"] == person.offset + 1
            assert event["data"]["text"] == self._texts[event["offset"]]
            person.offset += 1

    async def _come(self, number: int) -> None:
        person = self._people[number]
        if person.socket is not None:
            return
        server = self._servers[number % len(self._servers)]
        person.socket = await person.leaving.enter_async_context(server.socket(self._token))
        since = {"epoch": person.epoch, "offset": person.offset}
        params = {"topic": self._topic, **({"recover": since} if person.epoch else {})}
        result = await until(lambda: _subscribed(person.socket, params))
        self._epoch = self._epoch or result["epoch"]
        assert (result["epoch"], result["offset"]) == (self._epoch, self._top)
        if person.epoch == self._epoch and self._oldest <= person.offset + 1:
            assert result["recovered"]
        if result["recovered"]:
            assert person.epoch == self._epoch
            self._takes(person, result["epoch"], result["events"])
            assert person.offset == self._top
        else:
            assert result["events"] == []
        person.epoch, person.offset = result["epoch"], result["offset"]

    async def _go(self, number: int) -> None:
        person = self._people[number]
        await person.leaving.aclose()
        person.socket = None

    async def _forget_history(self, _: int) -> None:
        async with aioredis.from_url(self._stack.environment()["HW_REDIS__URL"]) as redis:
            await redis.delete(f"hw:topic:history:short%2F{self._number}")
        self._oldest = self._top + 1

    async def _restart(self, data: str) -> None:
        """Those who are there are told, in the new epoch."""
        await kill_valkey(self._stack)
        if data == "lost":
            await asyncio.to_thread(shutil.rmtree, self._stack.state / "valkey")
        await asyncio.to_thread(self._stack.start_one, "valkey")
        history = await until(self._new_history)
        self._epoch, self._texts, self._oldest = history["epoch"], {}, 1
        assert history["offset"] == 0
        for person in self._people:
            if person.socket is not None:
                message = await person.socket.read()
                params = {"topic": self._topic, "epoch": self._epoch, "offset": 0}
                assert (message["method"], message["params"]) == ("topic.reset", params)
                person.epoch, person.offset = self._epoch, 0

    async def _new_history(self) -> Any:
        history = await self._history()
        return history if history["epoch"] != self._epoch else None


async def _subscribed(socket: Any, params: dict[str, Any]) -> Any:
    return (await socket.call("topic.subscribe", **params)).get("result")


def test_what_a_subscriber_sees(one: Running, two: Running, tokens: dict[str, str], fragile: Stack) -> None:
    @given(st.lists(step, min_size=3, max_size=12), restart, st.lists(step, max_size=6))
    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    def histories(before: list[Any], data: str | None, after: list[Any]) -> None:
        steps = [*before, *([("restart", data)] if data else []), *after]
        asyncio.run(World([one, two], tokens["alice"], fragile).run(steps))

    histories()
