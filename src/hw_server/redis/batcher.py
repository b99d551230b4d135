"""Commands of many callers in one round trip."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar

import structlog
from prometheus_client import Counter

from hw_server.errors import Unavailable
from hw_server.redis.client import DedicatedConnection, RedisClient

log = structlog.get_logger()

BATCH = 128
Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """What is added during one round trip shares the next, in the order in which it came, so that a busy worker pays a fraction
    of a round trip for each. `execute(connection, items)` returns a result for each item; `purpose` labels the metrics."""

    def __init__(
        self,
        redis: RedisClient,
        purpose: str,
        execute: Callable[[DedicatedConnection, list[Item]], Awaitable[Sequence[Result]]],
        failures: Counter,
    ) -> None:
        self._redis = redis
        self._connection = DedicatedConnection(redis.client)
        self._purpose = purpose
        self._execute = execute
        self._failures = failures
        self._pending: list[tuple[Item, asyncio.Future[Result]]] = []
        self._flusher: asyncio.Task[None] | None = None

    def add(self, item: Item) -> "asyncio.Future[Result]":
        """The future fails with `Unavailable` where Redis is out of reach."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        if self._flusher is None:
            # Serves several requests, so its log lines must not carry one request's id.
            self._flusher = asyncio.create_task(self._flush(), name=self._purpose, context=Context())
        return future

    async def _flush(self) -> None:
        """Runs until nothing is pending; a failure goes to the callers of its batch."""
        try:
            while self._pending:
                batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
                items = [item for item, _ in batch]
                try:
                    results = await self._redis.run(
                        self._purpose,
                        lambda _, items=items: self._execute(self._connection, items),  # type: ignore[misc]
                    )
                    pairs = [*zip(results, batch, strict=True)]
                except Unavailable as error:
                    _fail(batch, error)
                    continue
                except Exception:
                    # A defect, and of this batch alone: the others go on.
                    log.exception("redis_batch_failed", purpose=self._purpose, items=len(batch))
                    self._failures.inc()
                    _fail(batch, Unavailable(f"Redis refused a batch of {self._purpose}"))
                    continue
                for result, (_, future) in pairs:
                    if not future.done():
                        future.set_result(result)
        finally:
            self._flusher = None


def _fail(batch: "list[tuple[Any, asyncio.Future[Any]]]", error: Unavailable) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
