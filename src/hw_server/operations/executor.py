"""Runs an operation for either protocol: role, input, transaction, audit row, serialized answer."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog
from pydantic import TypeAdapter

from hw_server.db import Database
from hw_server.errors import Conflict, DomainError, Forbidden, InternalError, Timeout, Unauthenticated, Unavailable
from hw_server.operations.audit import AuditRow, AuditTrail, action_row
from hw_server.operations.binding import Binder
from hw_server.operations.call import Call
from hw_server.operations.deadlines import Deadlines
from hw_server.operations.declaration import SIGNED_IN, Operation
from hw_server.operations.feature import Feature
from hw_server.operations.injection import AfterCommit, Context
from hw_server.operations.signature import read_signature
from hw_server.runtime.parts import Parts

log = structlog.get_logger()

UNKNOWN = "the outcome is unknown: the database did not answer the COMMIT; look before you try again"


class BoundOperation:
    """An operation with what was read from its signature. `dump` serializes its answer to JSON."""

    __slots__ = ("binder", "conflicts", "dump", "operation", "signature")

    def __init__(self, operation: Operation, feature: Feature, parts: Parts) -> None:
        self.operation = operation
        self.signature = read_signature(operation, parts)
        self.binder = Binder(operation, self.signature)
        self.dump: Callable[[Any], bytes] = TypeAdapter(self.signature.returns).serializer.to_json
        self.conflicts = feature.conflicts


class Executor:
    """Every operation of every feature, by name."""

    def __init__(
        self,
        features: Iterable[Feature],
        parts: Parts,
        db: Database,
        audit: AuditTrail,
        deadlines: Deadlines,
        record_reads: bool,
    ) -> None:
        self._db = db
        self._audit = audit
        self._deadlines = deadlines
        self._queued = frozenset({"queued", "reads"} if record_reads else {"queued"})
        self.operations: dict[str, BoundOperation] = {}
        for feature in features:
            for operation in feature.operations.declared:
                if operation.name in self.operations:
                    raise ValueError(f"operation {operation.name} is declared twice")
                self.operations[operation.name] = BoundOperation(operation, feature, parts)

    async def run(
        self, bound: BoundOperation, call: Call, bind: Callable[[], Awaitable[dict[str, Any]]]
    ) -> bytes | None:
        """The serialized answer, None where there is none. `bind` gives the arguments that the caller sent. Raises
        `DomainError`; every other exception is a defect."""
        operation, signature = bound.operation, bound.signature
        context, arguments, value = Context(call), None, None
        try:
            authorize(operation.role, call)
            with self._deadlines.start():
                arguments = await bind()
                if signature.connection == "write":
                    answer = await self._in_transaction(bound, context, arguments)
                elif signature.connection == "read":
                    async with self._db.read() as context.connection:
                        value = await operation.handler(**signature.assemble(arguments, context))
                else:
                    value = await operation.handler(**signature.assemble(arguments, context))
                if signature.connection != "write":
                    answer = None if value is None else bound.dump(value)
                    if operation.audit == "direct":
                        await self._audit.write(_row(operation, call, arguments, value))
        except TimeoutError:
            late = Timeout(UNKNOWN if context.committing else None)
            self._record_failure(operation, call, arguments, late)
            raise late from None
        except DomainError as problem:
            error = _in_words_of_feature(problem, bound)
            if context.committing and isinstance(error, Timeout | Unavailable):
                error = type(error)(UNKNOWN)
            self._record_failure(operation, call, arguments, error)
            raise error from None
        except Exception as defect:
            self._record_failure(operation, call, arguments, InternalError(type(defect).__name__))
            raise
        if context.after_commit:
            # Committed: no deadline makes a failure of it any more.
            await self._after_commit(operation, context.after_commit)
        elif operation.audit in self._queued:
            self._audit.record(_row(operation, call, arguments, value))
        return answer

    async def _in_transaction(self, bound: BoundOperation, context: Context, arguments: dict[str, Any]) -> bytes | None:
        """The change and its audit row commit together, before the answer is sent."""
        operation = bound.operation
        async with self._db.write() as context.connection:
            value = await operation.handler(**bound.signature.assemble(arguments, context))
            answer = None if value is None else bound.dump(value)
            await self._audit.insert(context.connection, _row(operation, context.call, arguments, value))
            context.committing = True
        return answer

    @staticmethod
    async def _after_commit(operation: Operation, calls: AfterCommit) -> None:
        for call in calls:
            try:
                await call()
            except Exception as error:
                log.warning("after_commit_failed", operation=operation.name, error=repr(error)[:200])

    def _record_failure(
        self, operation: Operation, call: Call, arguments: dict[str, Any] | None, error: DomainError
    ) -> None:
        outcome = "denied" if isinstance(error, Unauthenticated | Forbidden) else "failure"
        self._audit.record(_row(operation, call, arguments, None, outcome, error.status, error.code))


def authorize(role: str | None, call: Call) -> None:
    """Raises what refuses the caller; a public operation (no role) refuses nobody without a token."""
    if call.refusal is not None and (role is not None or not isinstance(call.refusal, Unauthenticated)):
        raise call.refusal
    if role is None:
        return
    if call.caller is None:
        raise Unauthenticated("missing")
    if role != SIGNED_IN and role not in call.caller.roles:
        raise Forbidden(f"the role {role} is required")


def _row(
    operation: Operation,
    call: Call,
    arguments: dict[str, Any] | None,
    value: Any,
    outcome: str = "success",
    status: int | None = None,
    error: str | None = None,
) -> AuditRow:
    return action_row(
        call,
        operation.name,
        call.resource or _resource(operation, arguments, value),
        outcome=outcome,
        status=operation.status if status is None else status,
        error=error,
    )


def _resource(operation: Operation, arguments: dict[str, Any] | None, value: Any) -> str | None:
    """`authors/42`: the path with its fields filled in, and the new row's id after a create."""
    path = operation.path.removeprefix("/")
    if "{" in path and arguments is not None:
        path = path.format_map(arguments)
    elif operation.status == 201 and (created := getattr(value, "id", None)) is not None:
        path = f"{path}/{created}"
    return path or None


def _in_words_of_feature(error: DomainError, bound: BoundOperation) -> DomainError:
    """A violated constraint, as the feature names it."""
    if isinstance(error, Conflict) and (constraint := error.extra.pop("constraint", None)) is not None:
        return Conflict(bound.conflicts.get(constraint))
    return error
