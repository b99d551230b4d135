"""Runs an operation for either protocol: role, input, transaction, audit row, serialized answer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog
from pydantic import TypeAdapter

from hw_server.db import Connection, Database
from hw_server.errors import (
    ClientDisconnected,
    Conflict,
    DomainError,
    Forbidden,
    InternalError,
    Timeout,
    Unauthenticated,
    Unavailable,
)
from hw_server.operations.audit import AuditRow, AuditTrail, Failures, action_row
from hw_server.operations.binding import Binder
from hw_server.operations.call import Call
from hw_server.operations.deadlines import Deadlines
from hw_server.operations.declaration import SIGNED_IN, Operation
from hw_server.operations.events import Events, Outbox
from hw_server.operations.feature import Feature, Reference
from hw_server.operations.fields import JsonObject
from hw_server.operations.injection import AfterCommit, Context
from hw_server.operations.signature import PATH_FIELD, read_signature
from hw_server.operations.turns import Turns
from hw_server.runtime.parts import Parts

log = structlog.get_logger()

MAX_FIELD = 255  # characters of one field in a row's resource
UNKNOWN = "the outcome is unknown: the database did not answer the COMMIT; look before you try again"


class BoundOperation:
    """An operation with what was read from its signature. `dump` serializes its answer to JSON."""

    __slots__ = ("binder", "dump", "operation", "signature")

    def __init__(self, operation: Operation, parts: Parts) -> None:
        self.operation = operation
        self.signature = read_signature(operation, parts)
        self.binder = Binder(operation, self.signature)
        returns = self.signature.returns
        self.dump: Callable[[Any], bytes] = bytes if returns is JsonObject else TypeAdapter(returns).serializer.to_json


class Executor:
    """Every operation of every feature, by name."""

    def __init__(
        self,
        features: Iterable[Feature],
        parts: Parts,
        db: Database,
        audit: AuditTrail,
        outbox: Outbox,
        deadlines: Deadlines,
        turns: Turns,
        failures: Failures,
        record_reads: bool,
    ) -> None:
        self._db = db
        self._audit = audit
        self._outbox = outbox
        self._deadlines = deadlines
        self._turns = turns
        self._failures = failures
        self._queued = frozenset({"queued", "reads"} if record_reads else {"queued"})
        self.operations: dict[str, BoundOperation] = {}
        self._words: dict[str, str | Reference] = {}
        for feature in features:
            for constraint, words in feature.conflicts.items():
                if constraint in self._words:
                    raise ValueError(f"feature {feature.name}: another feature has words for {constraint}")
                self._words[constraint] = words
            for operation in feature.operations.declared:
                if operation.name in self.operations:
                    raise ValueError(f"operation {operation.name} is declared twice")
                self.operations[operation.name] = BoundOperation(operation, parts)

    async def run(
        self, bound: BoundOperation, call: Call, bind: Callable[[], Awaitable[dict[str, Any]]]
    ) -> bytes | None:
        """The serialized answer, None where there is none. `bind` gives the arguments that the caller sent. Raises
        `DomainError`; every other exception is a defect."""
        operation, signature = bound.operation, bound.signature
        context, arguments, value = Context(call, self._outbox), None, None
        try:
            authorize(operation.role, call)
            with self._deadlines.start() as task:
                arguments = await bind()
                if signature.connection is None:
                    value = await operation.handler(**signature.assemble(arguments, context))
                    if context.events is not None:
                        response = await self._publish(bound, context, context.events, arguments, value)
                else:
                    response, value = await self._with_connection(bound, context, arguments, task)
                if operation.audit != "transaction":
                    response = None if value is None else bound.dump(value)
                    if operation.audit == "direct":
                        await self._audit.write(_row(operation, call, arguments, value))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not call.abandoned or task is None:
                raise
            task.uncancel()
            raise self._recorded(operation, call, arguments, ClientDisconnected()) from None
        except TimeoutError:
            late = UNKNOWN if context.committing else None
            raise self._recorded(operation, call, arguments, Timeout(late)) from None
        except DomainError as problem:
            raise self._recorded(operation, call, arguments, self._shown_to_caller(problem, context)) from None
        except Exception as defect:
            self._recorded(operation, call, arguments, InternalError(type(defect).__name__))
            raise
        if context.after_commit:
            # Committed: the deadline must not turn it into a failure any more.
            await self._after_commit(operation, context.after_commit)
        elif operation.audit in self._queued:
            self._audit.record(_row(operation, call, arguments, value))
        return response

    async def _with_connection(
        self, bound: BoundOperation, context: Context, arguments: dict[str, Any], task: "asyncio.Task[Any] | None"
    ) -> tuple[bytes | None, Any]:
        """In turn with other callers. Until it writes, a call whose client goes away is cancelled."""
        operation, call, response, value = bound.operation, context.call, None, None
        who = call.budget_key
        call.reading = task
        try:
            if not self._turns.enter(who):
                await self._turns.wait(who)
            try:
                writes = bound.signature.connection == "write"
                if writes or operation.changes:
                    call.reading = None
                if writes:
                    response = await self._in_transaction(bound, context, arguments)
                else:
                    async with self._db.read() as context.connection:
                        value = await operation.handler(**bound.signature.assemble(arguments, context))
            finally:
                self._turns.leave(who)
        finally:
            call.reading = None
        return response, value

    async def _in_transaction(self, bound: BoundOperation, context: Context, arguments: dict[str, Any]) -> bytes | None:
        """The change and its audit row commit together, before the answer is sent."""
        operation = bound.operation
        async with self._db.write() as context.connection:
            value = await operation.handler(**bound.signature.assemble(arguments, context))
            response = None if value is None else bound.dump(value)
            row, events = _row(operation, context.call, arguments, value), context.events
            if events is None or not events.buffered:
                await self._audit.insert(context.connection, row)
            else:
                await self._insert_with_events(context.connection, row, events)
            context.committing = True
        if events is not None:
            if events.buffered:
                self._outbox.committed()
            if events.ephemeral:
                context.after_commit.append(lambda: self._outbox.send(events.ephemeral))
        return response

    async def _publish(
        self, bound: BoundOperation, context: Context, events: Events, arguments: dict[str, Any], value: Any
    ) -> bytes | None:
        """Of an operation without a connection, which changes nothing else: what is durable commits with the audit row, in turn
        with other callers. Ephemeral events alone are recorded as reads are."""
        response = None if value is None else bound.dump(value)
        row = _row(bound.operation, context.call, arguments, value)
        if events.buffered:
            who = context.call.budget_key
            if not self._turns.enter(who):
                await self._turns.wait(who)
            try:
                async with self._db.write() as connection:
                    await self._insert_with_events(connection, row, events)
                    context.committing = True
            finally:
                self._turns.leave(who)
            self._outbox.committed()
            if events.ephemeral:
                context.after_commit.append(lambda: self._outbox.send(events.ephemeral))
            return response
        if events.ephemeral:
            await self._outbox.send(events.ephemeral)
        if "reads" in self._queued:
            self._audit.record(row)
        return response

    async def _insert_with_events(self, connection: Connection, row: AuditRow, events: Events) -> None:
        """The last statement, so that ids of events are drawn after the changed rows are locked."""
        if (turns := self._outbox.ordered_topics(events.buffered)) is not None:
            await connection.execute(turns.sql, *turns.arguments)
        await self._audit.insert(connection, row, self._outbox.insertion(events.buffered, len(row) + 1))

    @staticmethod
    async def _after_commit(operation: Operation, calls: AfterCommit) -> None:
        for call in calls:
            try:
                await call()
            except Exception as error:
                log.warning("after_commit_failed", operation=operation.name, error=repr(error)[:200])

    def _in_words(self, error: DomainError) -> DomainError:
        """A violated constraint in the words of the feature that has it, whichever feature's operation violates it."""
        if not isinstance(error, Conflict) or (constraint := error.extra.pop("constraint", None)) is None:
            return error
        words = self._words.get(constraint)
        if isinstance(words, Reference):
            return Conflict(words.used if error.extra.get("referenced") else words.missing)
        return Conflict(words)

    def _shown_to_caller(self, problem: DomainError, context: Context) -> DomainError:
        """The error for the caller: a failure during COMMIT leaves the outcome unknown."""
        error = self._in_words(problem)
        if context.committing and isinstance(error, Timeout | Unavailable):
            return type(error)(UNKNOWN)
        return error

    def _recorded(
        self, operation: Operation, call: Call, arguments: dict[str, Any] | None, error: DomainError
    ) -> DomainError:
        """Records a failure and gives it back: in a variable of `run` it would be in its own traceback, a cycle that holds all that
        the request sent until a collection."""
        resource = _resource(operation, call, arguments, None)
        self._failures.record(call, operation.name, resource, error.status, error.code)
        return error


def authorize(role: str | None, call: Call) -> None:
    """Raises why the caller is refused. A public operation (no role) accepts callers without a valid token."""
    if call.refusal is not None and (role is not None or not isinstance(call.refusal, Unauthenticated)):
        raise call.take_refusal()
    if role is None:
        return
    if call.caller is None:
        raise Unauthenticated("missing")
    if role != SIGNED_IN and role not in call.caller.roles:
        raise Forbidden(f"the role {role} is required")


def _row(operation: Operation, call: Call, arguments: dict[str, Any] | None, value: Any) -> AuditRow:
    return action_row(call, operation.name, _resource(operation, call, arguments, value), status=operation.status)


def _resource(operation: Operation, call: Call, arguments: dict[str, Any] | None, value: Any) -> str | None:
    """`authors/42`: the path with its fields filled in, and the new row's id after a create; or what the operation named."""
    if call.resource:
        return call.resource
    path = operation.path.removeprefix("/")
    if "{" in path and arguments is not None:
        path = path.format_map(arguments)
    elif "{" in path:
        asked = call.asked or {}
        path = PATH_FIELD.sub(lambda field: _shown(asked.get(field[1]), field[0]), path)
    elif operation.status == 201 and (created := getattr(value, "id", None)) is not None:
        path = f"{path}/{created}"
    return path or None


def _shown(value: Any, placeholder: str) -> str:
    """A field of a refused call, which nothing has validated."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return str(value)
    usable = isinstance(value, str) and value and value[:MAX_FIELD].isprintable()
    return value[:MAX_FIELD] if usable else placeholder
