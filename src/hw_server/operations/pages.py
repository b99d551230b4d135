"""Pages of a list: by number with a cached total, or by keyset cursor."""

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json, to_json

from hw_server.errors import InvalidInput, Unavailable
from hw_server.redis import Keys, RedisClient

T = TypeVar("T")
TOTAL_LIFETIME = 10  # seconds; the longest a total may lag behind a write that another instance made meanwhile


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
    def decode(cursor: str, *types: type) -> list[Any]:
        """The values, each of the given type; raises `InvalidInput` for anything this server did not make."""
        try:
            data = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
            values = from_json(data)
        except (ValueError, binascii.Error):
            values = None
        if (
            not isinstance(values, list)
            or len(values) != len(types)
            or not all(type(value) is kind for value, kind in zip(values, types, strict=True))
            or any(isinstance(value, str) and "\x00" in value for value in values)
            or any(isinstance(value, int) and abs(value) >= 2**63 for value in values)
        ):
            raise InvalidInput([{"field": "cursor", "message": "is not a cursor of this list", "type": "cursor"}])
        return values


class Totals:
    """Numbers of rows, cached in Redis for a few seconds and dropped on write."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def get(self, name: str, filters: BaseModel, count: Callable[[], Awaitable[int]]) -> int:
        """The cached total of the list `name` under `filters`, else what `count` says."""
        key, field = self._keys.totals(name), filters.model_dump_json(exclude={"page", "per_page", "cursor", "sort"})
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
                pipe.expire(key, TOTAL_LIFETIME, nx=True)
                await pipe.execute()

        try:
            await self._redis.run("totals", store)
        except Unavailable:
            return total
        return total

    def drop(self, name: str) -> Callable[[], Awaitable[None]]:
        """A call for `AfterCommit`."""

        async def forget() -> None:
            await self._redis.run("totals", lambda client: client.delete(self._keys.totals(name)))

        return forget
