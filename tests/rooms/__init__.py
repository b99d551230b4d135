"""A feature with topics, for the tests; no server ships it."""

import asyncio
from typing import Annotated, Any

import structlog
from pydantic import BaseModel, Field

from hw_server.auth import Principal
from hw_server.errors import Conflict
from hw_server.operations import SIGNED_IN, Events, Feature, History, Id, Operations, Topic, Write
from tests import notes

log = structlog.get_logger()
operations = Operations("/rooms")


class Words(BaseModel):
    text: str = Field(max_length=100_000)


class Said(Words):
    by: str = ""


async def may_enter(caller: Principal, id: int) -> bool:
    return id < 1000 or caller.username == "dave"


async def may_speak(caller: Principal, id: int) -> bool:
    return id < 500


async def may_enter_slowly(caller: Principal, id: int) -> bool:
    log.info("entering_slowly", room=id)
    await asyncio.sleep(1)
    return "notes:read" in caller.roles


async def may_enter_or_never_hears(caller: Principal, id: int) -> bool:
    if "notes:read" not in caller.roles:
        await asyncio.sleep(60)
    return True


ROOM = Topic("rooms/{id}", Said, params={"id": int}, subscribe=may_enter, publish=may_speak)
SHORT = Topic("short/{id}", Said, params={"id": int}, subscribe="notes:read", history=History(5, hours=1))
CURSORS = Topic(
    "cursors/{id}", Said, params={"id": int}, subscribe="notes:read", publish="notes:read", ephemeral=True,
    when_full="conflate", key="by",
)  # fmt: skip
LATEST = Topic("latest/{id}", Said, params={"id": int}, subscribe=SIGNED_IN, when_full="conflate")
BRIEF = Topic(
    "brief/{id}", Said, params={"id": int}, subscribe="notes:read", history=History(10, hours=0.0003, bytes=300)
)
SLOW = Topic("slow/{id}", Said, params={"id": int}, subscribe=may_enter_slowly)
SILENT = Topic("silent/{id}", Said, params={"id": int}, subscribe=may_enter_or_never_hears)
TURNS = Topic("turns", Said, subscribe="notes:read", ordered=True)
TOPICS: dict[str, Topic[Any]] = {
    "rooms": ROOM, "short": SHORT, "cursors": CURSORS, "latest": LATEST, "brief": BRIEF
}  # fmt: skip


class Where(BaseModel):
    family: Annotated[str, Field(pattern="^(rooms|short|cursors|latest|brief)$")] = "rooms"
    times: int = 1
    fail: bool = False


class Counted(BaseModel):
    note: int


@operations.post("rooms.say", "/{id}/words", role="notes:write")
async def say(db: Write, id: Id, query: Where, body: Words, caller: Principal, events: Events) -> None:
    """Say words in a room, so many times; or fail after it."""
    for index in range(query.times):
        text = body.text if query.times == 1 else f"{body.text} {index}"
        events.publish(TOPICS[query.family], Said(text=text, by=caller.username), id=id)
    if query.fail:
        raise Conflict("nothing was said")


@operations.post("rooms.turn", "/turns", role="notes:write")
async def take_turn(db: Write, body: Words, events: Events) -> None:
    """Say words in turn with others, without a row that all change."""
    events.publish(TURNS, Said(text=body.text))


@operations.post("rooms.count", "/{id}/counts", role="notes:write")
async def count(db: Write, id: Id, query: Counted, events: Events) -> None:
    """Count in a row of the notes, and say how far it is."""
    sql = "UPDATE notes SET text = (text::int + 1)::text WHERE id = $1 RETURNING text"
    events.publish(ROOM, Said(text=await db.fetchval(sql, query.note)), id=id)


feature = Feature("rooms", operations, topics=(ROOM, SHORT, CURSORS, LATEST, BRIEF, SLOW, SILENT, TURNS))
FEATURES = (*notes.FEATURES, feature)
