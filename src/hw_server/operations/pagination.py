"""Pages of a list: by number with a cached total, or by keyset cursor."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hw_server.errors import Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.operations.sorting import Sort
from hw_server.redis import CacheRedis, Keys
from hw_server.redis.batcher import Batcher
from hw_server.redis.client import DedicatedConnection, Script

T = TypeVar("T")
COUNT_LIFETIME = 10  # seconds; the longest a total may lag behind a write that another instance made meanwhile
DELETE = Script("return redis.call('DEL', unpack(KEYS))")


class CursorQuery(BaseModel):
    """The query of a list that is read by cursor alone. A field `sort` in a subclass names one of the list's orders."""

    model_config = ConfigDict(extra="forbid")

    per_page: int = Field(20, ge=1, le=100)
    cursor: str | None = Field(None, max_length=1000, description="`next_cursor` of the page before.")

    @property
    def offset(self) -> int:
        """Rows to skip."""
        return 0


class PageQuery(CursorQuery):
    """The query of a list that is read by cursor or by page number."""

    page: int | None = Field(None, ge=1, le=100_000, description="Page number; answers with the total.")

    @model_validator(mode="after")
    def _one_way(self) -> "PageQuery":
        if self.page is not None and self.cursor is not None:
            raise ValueError("give either page or cursor")
        return self

    @property
    def offset(self) -> int:
        return 0 if self.page is None else (self.page - 1) * self.per_page


class Page(BaseModel, Generic[T]):
    """`total` and `page` are there when a page number was asked for."""

    items: list[T]
    per_page: int
    next_cursor: str | None = None
    total: int | None = Field(None, exclude_if=lambda value: value is None)
    page: int | None = Field(None, exclude_if=lambda value: value is None)

    @classmethod
    def from_rows(cls, rows: Sequence[Any], query: CursorQuery, sort: Sort, total: int | None = None) -> Self:
        """A page of what `sort.statement` for the same query fetched; `total` is what `CountCache.get` returned."""
        shown = rows[: query.per_page]
        fields = {
            "items": [dict(row) for row in shown],
            "per_page": query.per_page,
            "next_cursor": sort.order(query).cursor(shown[-1]) if len(rows) > query.per_page else None,
        }
        if total is not None:
            fields |= {"total": total, "page": getattr(query, "page", None)}
        return cls.model_validate(fields)


class CountCache:
    """Numbers of rows, cached in Redis for a few seconds and invalidated by writes. Without Redis every total is counted."""

    def __init__(self, redis: CacheRedis, keys: Keys, metrics: Metrics) -> None:
        self._redis = redis
        self._keys = keys
        self._deletions = Batcher[str, None](redis, "totals", self._delete, metrics.service_failures.labels("totals"))

    async def get(self, name: str, query: PageQuery, count: Callable[[], Awaitable[int]]) -> int | None:
        """The cached total of the list `name` under the filters of `query`, else what `count` returns; None where no page
        number was asked for, and so no total."""
        if query.page is None:
            return None
        key = self._keys.totals(name)
        field = query.model_dump_json(exclude={"page", "per_page", "cursor", "sort"})
        try:
            cached = await self._redis.run("totals", lambda client: client.hget(key, field))
        except Unavailable:
            return await count()
        if cached is not None:
            return int(cached)
        total = await count()

        async def store(client: Any) -> None:
            async with client.pipeline(transaction=False) as pipe:
                pipe.hset(key, field, total)
                pipe.expire(key, COUNT_LIFETIME, nx=True)
                await pipe.execute()

        try:
            await self._redis.run("totals", store)
        except Unavailable:
            return total
        return total

    def invalidate(self, name: str) -> Callable[[], Awaitable[None]]:
        """A call for `AfterCommit`. Writers at the same time share a round trip, always one sent after their commit."""

        async def delete() -> None:
            await self._deletions.add(self._keys.totals(name))

        return delete

    @staticmethod
    async def _delete(connection: DedicatedConnection, keys: list[str]) -> list[None]:
        await DELETE.run(connection, [*{*keys}], [])
        return [None] * len(keys)
