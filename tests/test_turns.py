"""Turns at the database: caller by caller, whoever asks most or most often."""

import asyncio
import contextlib

from prometheus_client import Counter

from hw_server.operations import Turns


async def test_calls_that_were_given_up_buy_no_more_turns() -> None:
    turns = Turns(1, 1, 1000, Counter("turns_refused", "", registry=None))
    assert turns.enter("another")
    served: list[str] = ["another"]

    async def wait(who: str) -> None:
        await turns.wait(who)
        served.append(who)

    for _ in range(100):
        given_up = asyncio.create_task(wait("busy"))
        await asyncio.sleep(0)
        given_up.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await given_up
    waiting = [asyncio.create_task(wait("busy")) for _ in range(50)] + [asyncio.create_task(wait("patient"))]
    await asyncio.sleep(0)
    for turn in range(1, 52):
        turns.leave(served[-1])
        await asyncio.sleep(0)
        assert len(served) == turn + 1
    await asyncio.gather(*waiting)
    assert served.index("patient") <= 2
