"""How long an event takes from one process to a subscriber of another."""

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

from hw_client import Client, Subscription

RATE = 100  # events a second


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


async def direct(publisher: str, subscriber: str, token: str, redis_url: str, seconds: float) -> tuple[float, float]:
    """p99 in seconds of a PING of Redis, and of an event that a client publishes on one process to its delivery on another."""
    pings: list[float] = []
    delays: list[float] = []
    async with (
        Client(publisher, token) as ours,
        Client(subscriber, token) as theirs,
        Redis.from_url(redis_url) as redis,
        theirs.subscribe("bench/direct") as events,
    ):
        heard = asyncio.create_task(_delays(events, delays))
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            started = time.perf_counter()
            await redis.ping()
            pings.append(time.perf_counter() - started)
            await ours.call("topic.publish", topic="bench/direct", data={"at": time.time()})
            await asyncio.sleep(max(0.0, 1 / RATE - (time.perf_counter() - started)))
        heard.cancel()
    return p99(pings), p99(delays)


async def while_written(subscriber: str, token: str, command: list[str]) -> float:
    """p99 in seconds from an event's publication within a transaction, its COMMIT included, to its delivery, while `command`
    writes."""
    delays: list[float] = []
    async with Client(subscriber, token) as client, client.subscribe("bench/stamped") as events:
        heard = asyncio.create_task(_delays(events, delays))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        if await process.wait() != 0:
            raise RuntimeError(f"{command[0]} failed")
        await asyncio.sleep(0.5)
        heard.cancel()
    return p99(delays)


async def _delays(events: Subscription[Any], delays: list[float]) -> None:
    async for event in events:
        delays.append(time.time() - event.data["at"])
