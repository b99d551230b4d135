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
from tests.topics.follower import subscribed

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
    st.tuples(st.just("break the feeds"), st.just(0)),
    st.tuples(st.just("forget history"), st.just(0)),
)
# A restart takes two seconds, so there is at most one in a history.
restart = st.sampled_from([None, None, "kept", "lost"])


@dataclass
class Person:
    """A subscriber: `epoch` and `offset` of what it has seen; `socket` while it is there."""

    epoch: str = ""
    offset: int = 0
    socket: Socket | None = None
    leaving: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)


class World:
    """`texts` by epoch and offset; `top` is the last offset of the present epoch, `oldest` the first that history still has."""

    def __init__(self, servers: list[Running], token: str, stack: Stack) -> None:
        self._servers, self._token, self._stack = servers, token, stack
        self._number = uuid.uuid4().int >> 80
        self._topic = f"short/{self._number}"
        self._people = [Person() for _ in range(PEOPLE)]
        self._epoch = ""
        self._texts: dict[tuple[str, int], str] = {}
        self._top, self._oldest = 0, 1

    async def run(self, steps: list[tuple[str, Any]]) -> None:
        async with self._servers[0].client(self._token) as self._client:
            try:
                self._epoch = (await until(self._history))["epoch"]
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
        for each in texts:
            self._top += 1
            self._texts[self._epoch, self._top] = each
        self._oldest = max(self._oldest, self._top - KEPT + 1)
        await until(self._published)
        for person in self._people:
            await self._hears(person)

    async def _published(self) -> bool:
        history = await self._history()
        return history is not None and (history["epoch"], history["offset"]) == (self._epoch, self._top)

    async def _history(self) -> Any:
        response = await self._client.get("/api/topics/history", params={"topic": self._topic})
        return response.json() if response.status_code == 200 else None

    async def _hears(self, person: Person) -> None:
        """Whatever it has not seen, each event once and in order, or that the history does not have it any more."""
        while person.socket is not None and (person.epoch, person.offset) != (self._epoch, self._top):
            message = await person.socket.read()
            params = message["params"]
            if message["method"] == "topic.reset":
                assert person.epoch != self._epoch or person.offset + 1 < self._oldest
                assert params["epoch"] != person.epoch or params["offset"] > person.offset
                person.epoch, person.offset = params["epoch"], params["offset"]
            else:
                assert message["method"] in ("topic.event", "topic.events")
                assert (params["topic"], params["epoch"]) == (self._topic, person.epoch)
                self._takes(person, params.get("events", [params]))

    def _takes(self, person: Person, events: list[dict[str, Any]]) -> None:
        for event in events:
            assert event["offset"] == person.offset + 1
            assert event["data"]["text"] == self._texts[person.epoch, event["offset"]]
            person.offset += 1

    async def _come(self, number: int) -> None:
        person = self._people[number]
        if person.socket is not None:
            return
        server = self._servers[number % len(self._servers)]
        person.socket = await person.leaving.enter_async_context(server.socket(self._token))
        since = {"recover": {"epoch": person.epoch, "offset": person.offset}} if person.epoch else {}
        result = await until(lambda: subscribed(person.socket, topic=self._topic, **since))
        if person.epoch == self._epoch and self._oldest <= person.offset + 1:
            assert result["recovered"]
        if result["recovered"]:
            self._takes(person, result["events"])
            assert (person.epoch, person.offset) == (result["epoch"], result["offset"])
        else:
            assert result["events"] == []
        person.epoch, person.offset = result["epoch"], result["offset"]
        await self._hears(person)  # its process may have been behind

    async def _go(self, number: int) -> None:
        person = self._people[number]
        await person.leaving.aclose()
        person.socket = None

    async def _break_the_feeds(self, _: int) -> None:
        async with aioredis.from_url(self._stack.environment()["HW_REDIS__URL"]) as redis:
            await redis.client_kill_filter(_type="pubsub", skipme=True)

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
        self._epoch = (await until(self._new_history))["epoch"]
        self._top, self._oldest = 0, 1
        for person in self._people:
            await self._hears(person)

    async def _new_history(self) -> Any:
        history = await self._history()
        return history if history is not None and history["epoch"] != self._epoch else None


def test_what_a_subscriber_sees(one: Running, two: Running, tokens: dict[str, str], fragile: Stack) -> None:
    @given(st.lists(step, min_size=3, max_size=12), restart, st.lists(step, max_size=6))
    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    def histories(before: list[Any], data: str | None, after: list[Any]) -> None:
        steps = [*before, *([("restart", data)] if data else []), *after]
        asyncio.run(World([one, two], tokens["alice"], fragile).run(steps))

    histories()
