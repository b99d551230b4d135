"""Pages of a list: by number with a cached total, or by keyset cursor."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import cache
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import to_json

from hw_server.errors import InvalidInput, Unavailable
from hw_server.operations.fields import Text
from hw_server.redis import CacheRedis, Keys

T = TypeVar("T")
COUNT_LIFETIME = 10  # seconds; the longest a total may lag behind a write that another instance made meanwhile


class Page(BaseModel, Generic[T]):
    """`total` and `page` are there when a page number was asked for."""

    items: list[T]
    per_page: int
    next_cursor: str | None = None
    total: int | None = Field(None, exclude_if=lambda value: value is None)
    page: int | None = Field(None, exclude_if=lambda value: value is None)


class PageQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    per_page: int = Field(20, ge=1, le=100)
    page: int | None = Field(None, ge=1, le=100_000, description="Page number; answers with the total.")
    cursor: str | None = Field(None, max_length=1000, description="`next_cursor` of the page before.")

    @model_validator(mode="after")
    def _one_way(self) -> "PageQuery":
        if self.page is not None and self.cursor is not None:
            raise ValueError("give either page or cursor")
        return self

    @property
    def offset(self) -> int:
        return 0 if self.page is None else (self.page - 1) * self.per_page


class Cursor:
    """An opaque position in a sorted list: the sort order and the last row's sort values."""

    @staticmethod
    def encode(*values: Any) -> str:
        return base64.urlsafe_b64encode(to_json(values)).rstrip(b"=").decode()

    @staticmethod
    def decode(cursor: str, *types: Any) -> tuple[Any, ...]:
        """The values, each of the given type; raises `InvalidInput` for anything this server did not make."""
        try:
            data = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
            return _cursor_type(types).validate_json(data)
        except ValueError:
            raise InvalidInput(
                [{"field": "cursor", "message": "is not a cursor of this list", "type": "cursor"}]
            ) from None


@cache
def _cursor_type(types: tuple[Any, ...]) -> TypeAdapter[tuple[Any, ...]]:
    """Text and numbers that PostgreSQL can hold."""
    held = tuple({str: Text, int: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]}.get(kind, kind) for kind in types)
    return TypeAdapter(tuple[held])  # type: ignore[valid-type]


class CountCache:
    """Numbers of rows, cached in Redis for a few seconds and invalidated by writes. Without Redis every total is counted."""

    def __init__(self, redis: CacheRedis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._pending: dict[str, asyncio.Task[Unavailable | None]] = {}
        self._turn = asyncio.Lock()

    async def get(self, name: str, filters: BaseModel, count: Callable[[], Awaitable[int]]) -> int:
        """The cached total of the list `name` under `filters`, else what `count` returns."""
        key = self._keys.totals(name)
        field = filters.model_dump_json(exclude={"page", "per_page", "cursor", "sort"})
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
            pending = self._pending.get(name)
            if pending is None:
                # Shared by several requests, so it logs in the name of none.
                pending = asyncio.create_task(self._delete(name), name="count-cache", context=Context())
                self._pending[name] = pending
            if (failure := await asyncio.shield(pending)) is not None:
                raise failure

        return delete

    async def _delete(self, name: str) -> Unavailable | None:
        async with self._turn:
            del self._pending[name]  # a write that commits from now on needs a later round trip
            try:
                await self._redis.run("totals", lambda client: client.delete(self._keys.totals(name)))
            except Unavailable as failure:
                return failure
            return None
