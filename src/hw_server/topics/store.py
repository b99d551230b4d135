"""Topics in Redis: per topic a hash with epoch and offset, and a stream with the last events. Each restart or failover of Redis
begins new epochs, because offsets may have been lost and given again; so does an outbox that was restored from a backup."""

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import structlog
from redis.exceptions import RedisError, ResponseError

from hw_server.errors import Unavailable
from hw_server.operations import History
from hw_server.redis import CacheRedis, Keys
from hw_server.settings import RedisSettings

log = structlog.get_logger()

META_LIFETIME = 7 * 86_400  # seconds that a topic's offset outlives its history
EMPTY_LIFETIME = 3600  # seconds of a topic that has never had an event, and that nobody reads
PAGE = 500  # events of one read
RETRY = 0.3  # seconds without attempts after a connection failed
# Codes of errors that are about Redis as a whole, never about one event, and for which redis-py has no class.
OF_REDIS = frozenset({"MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE"})
FENCED = -1  # what APPEND returns to a relay after which a later one has published

# Starts a new epoch unless the topic's generation is that of this Redis, and its incarnation that of the outbox. The replication
# id may change under a connection: with a failover, but also with the first replica, or an hour after the last.
EPOCH = """
local generation = ARGV[1] .. ':' .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local meta = redis.call('HMGET', KEYS[1], 'g', 'e', 'o', 'b', 'i')
local epoch, offset, bytes = meta[2], tonumber(meta[3]) or 0, tonumber(meta[4]) or 0
if meta[1] ~= generation or (incarnation and meta[5] and meta[5] ~= incarnation) then
  redis.call('DEL', KEYS[2])
  epoch, offset, bytes = ARGV[2], 0, 0
  redis.call('HSET', KEYS[1], 'g', generation, 'e', epoch, 'o', 0, 'b', 0)
end
"""
# Durable events come with a fence, and with a key each (see `relay`); ephemeral ones have neither.
APPEND = (
    """
local durable, incarnation = #KEYS > 2, nil
if durable then
  incarnation = ARGV[9]
  local fence = tonumber(redis.call('GET', KEYS[3])) or 0
  if tonumber(ARGV[4]) < fence then return -1 end
  if tonumber(ARGV[4]) > fence then redis.call('SET', KEYS[3], ARGV[4]) end
end
"""
    + EPOCH
    + """
if redis.call('EXISTS', KEYS[2]) == 0 then bytes = 0 end  -- it has expired
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local max_length, max_age, max_bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
if durable and meta[5] ~= incarnation then redis.call('HSET', KEYS[1], 'i', incarnation) end
for i = 10, #ARGV, 2 do
  if not durable or redis.call('SISMEMBER', KEYS[4], ARGV[i]) == 0 then
    redis.call('XADD', KEYS[2], (offset + 1) .. '-0', 'd', ARGV[i + 1], 't', now)
    offset = offset + 1
    bytes = bytes + #ARGV[i + 1]
    redis.call('HSET', KEYS[1], 'o', offset, 'b', bytes)
    if durable then redis.call('SADD', KEYS[4], ARGV[i]) end
    redis.call('PUBLISH', ARGV[5], epoch .. ' ' .. offset .. ' ' .. ARGV[i + 1])
  end
end
local length = redis.call('XLEN', KEYS[2])
while length > 0 do
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if length <= max_length and bytes <= max_bytes and oldest[2][4] + max_age > now then break end
  redis.call('XDEL', KEYS[2], oldest[1])
  bytes = bytes - #oldest[2][2]
  length = length - 1
end
redis.call('HSET', KEYS[1], 'b', bytes)
redis.call('PEXPIRE', KEYS[2], max_age)
redis.call('PEXPIRE', KEYS[1], max_age + tonumber(ARGV[3]) * 1000)
return offset
"""
)
READ = (
    "local incarnation = nil\n"
    + EPOCH
    + """
local lifetime = offset > 0 and tonumber(ARGV[3]) or tonumber(ARGV[6])
if redis.call('TTL', KEYS[1]) < lifetime then redis.call('EXPIRE', KEYS[1], lifetime) end
local entries = {}
if tonumber(ARGV[5]) > 0 and tonumber(ARGV[4]) <= offset then
  entries = redis.call('XRANGE', KEYS[2], ARGV[4] .. '-0', '+', 'COUNT', ARGV[5])
end
local events = {}
for i, entry in ipairs(entries) do events[i] = {entry[1], entry[2][2]} end
return {epoch, offset, events}
"""
)


class Unreachable(Unavailable):
    """Redis does not answer this process; another one may reach it."""


class Fenced(Exception):
    """A later holder of the partition publishes already."""


class Stored(NamedTuple):
    """A topic as Redis has it: epoch, the last offset, and `(offset, data)` of the events asked for, in order."""

    epoch: str
    offset: int
    events: list[tuple[int, bytes]]


class TopicStore:
    """One connection of its own, on which commands are pipelined: the run id of Redis is read when it is made, and so is true for
    every command that it carries."""

    def __init__(self, settings: RedisSettings, redis: CacheRedis, keys: Keys) -> None:
        self._timeout = settings.timeout
        self._pool = redis.client.connection_pool
        self._keys = keys
        self._connection: Any = None
        self._run_id = ""
        self._scripts: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._retry_at = 0.0  # time.monotonic() before which no connection is tried again

    async def append(
        self,
        partition: int,
        fence: int,
        incarnation: str,
        topics: Iterable[tuple[str, History, Sequence[tuple[str, bytes]]]],
    ) -> list[ResponseError | None]:
        """Publishes `(key, data)` of each topic in order, those with a known key excepted; per topic None or why it was
        refused. Raises `Fenced`, and `Unavailable` where Redis as a whole does not take events."""
        run_id = await self._ready()
        relay = [self._keys.topic_fence(partition, incarnation), self._keys.topic_published(partition)]
        return await self._append(
            run_id,
            [self._appending(name, history, relay, fence, incarnation, events) for name, history, events in topics],
        )

    async def send(self, topics: Iterable[tuple[str, History, Sequence[bytes]]]) -> list[ResponseError | None]:
        """The same for ephemeral events, which are published as often as they are sent."""
        run_id = await self._ready()
        return await self._append(
            run_id,
            [
                self._appending(name, history, [], 0, "", [("", data) for data in events])
                for name, history, events in topics
            ],
        )

    def _appending(
        self,
        name: str,
        history: History,
        relay: list[str],
        fence: int,
        incarnation: str,
        events: Sequence[tuple[str, bytes]],
    ) -> tuple[Any, ...]:
        keys = [self._keys.topic_meta(name), self._keys.topic_history(name), *relay]
        arguments: list[Any] = [
            self._run_id, secrets.token_hex(6), META_LIFETIME, fence, self._keys.topic_channel(name),
            history.length, int(history.hours * 3_600_000), history.bytes, incarnation,
        ]  # fmt: skip
        return self._script(APPEND, keys, arguments + [part for event in events for part in event])

    async def _append(self, run_id: str, commands: list[tuple[Any, ...]]) -> list[ResponseError | None]:
        return [_refusal(result) for result in await self._execute(commands, run_id)]

    async def forget(self, partition: int, keys: Sequence[str] | Sequence[bytes]) -> None:
        """After the outbox has deleted these events, their keys need not be known any more."""
        await self._execute([("SREM", self._keys.topic_published(partition), *keys)])

    async def published(self, partition: int) -> list[bytes]:
        """The keys of published events that Redis still remembers."""
        [members] = await self._execute([("SMEMBERS", self._keys.topic_published(partition))])
        if isinstance(members, ResponseError):
            raise Unavailable(str(members)) from members
        return list(members)

    async def wait(self, replicas: int) -> bool:
        """Whether so many replicas hold all that was published before."""
        [acknowledged] = await self._execute([("WAIT", replicas, int(self._timeout * 500))])
        return isinstance(acknowledged, int) and acknowledged >= replicas

    async def read(self, name: str, first: int = 0, count: int = 0) -> Stored:
        """Epoch and offset of a topic, with at most `count` events from offset `first` on."""
        run_id = await self._ready()
        keys = [self._keys.topic_meta(name), self._keys.topic_history(name)]
        arguments = [self._run_id, secrets.token_hex(6), META_LIFETIME, first, count, EMPTY_LIFETIME]
        [result] = await self._execute([self._script(READ, keys, arguments)], run_id)
        if isinstance(result, ResponseError):
            raise Unavailable(f"the topic cannot be read: {result}") from result
        epoch, offset, entries = result
        return Stored(epoch.decode(), offset, [(int(entry[0].partition(b"-")[0]), entry[1]) for entry in entries])

    def _script(self, source: str, keys: list[str], arguments: list[Any]) -> tuple[Any, ...]:
        return ("EVALSHA", self._scripts[source], len(keys), *keys, *arguments)

    async def _ready(self) -> str:
        """Connects where it is not connected; returns the run id of Redis, which scripts are given."""
        if self._connection is None or not self._connection.is_connected:
            async with self._lock:
                await self._connect()
        return self._run_id

    async def _connect(self) -> None:
        if self._connection is not None and self._connection.is_connected:
            return
        if time.monotonic() < self._retry_at:
            raise Unreachable("Redis is out of reach")
        connection = self._pool.make_connection()
        try:
            async with asyncio.timeout(4 * self._timeout):
                await connection.connect()
                await connection.send_command("INFO", "server")
                information = (await connection.read_response()).decode()
                self._run_id = dict(line.split(":", 1) for line in information.splitlines() if ":" in line)["run_id"]
                for source in (APPEND, READ):
                    await connection.send_command("SCRIPT", "LOAD", source)
                    self._scripts[source] = (await connection.read_response()).decode()
        except (RedisError, OSError, TimeoutError) as error:
            await connection.disconnect(nowait=True)
            self._retry_at = time.monotonic() + RETRY
            raise Unreachable("Redis is out of reach") from error
        self._connection = connection  # set last: concurrent callers need its scripts loaded

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _execute(self, commands: list[tuple[Any, ...]], run_id: str | None = None) -> list[Any]:
        """The results in order; an error of one command is its result. Commands for another run of Redis are not sent."""
        async with self._lock:
            known = run_id is None or run_id == self._run_id
            if self._connection is None or not self._connection.is_connected or not known:
                raise Unreachable("Redis is out of reach")
            try:
                async with asyncio.timeout(self._timeout + len(commands) * 0.01):
                    await self._connection.send_packed_command(self._connection.pack_commands(commands), False)
                    return [await self._response() for _ in commands]
            except (RedisError, OSError, TimeoutError) as error:
                await self._disconnect()
                raise Unreachable("Redis is out of reach") from error
            except BaseException:
                # A response may be half read.
                await self._disconnect()
                raise

    async def _response(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error


def _refusal(result: Any) -> ResponseError | None:
    if result == FENCED:
        raise Fenced
    if not isinstance(result, ResponseError):
        return None
    if type(result) is not ResponseError or str(result).partition(" ")[0] in OF_REDIS:
        raise Unavailable(f"Redis refuses events: {str(result)[:200]}")
    return result
