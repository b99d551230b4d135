"""Runs an operation for either protocol: role, input, transaction, audit, answer."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog

from hw_server.db import Database
from hw_server.errors import Conflict, DomainError, Forbidden, Timeout, Unauthenticated
from hw_server.operations.audit import AuditRow, AuditTrail, Call, action_row
from hw_server.operations.binder import Binder, Input
from hw_server.operations.deadlines import Deadlines
from hw_server.operations.declaration import SIGNED_IN, AfterCommit, Feature, Operation

log = structlog.get_logger()


class BoundOperation:
    """An operation with its binder and what its feature says of conflicts."""

    __slots__ = ("binder", "conflicts", "operation")

    def __init__(self, operation: Operation, binder: Binder, feature: Feature) -> None:
        self.operation = operation
        self.binder = binder
        self.conflicts = feature.conflicts


class Executor:
    """`status_of` gives the HTTP status of a domain error, for the audit row."""

    def __init__(
        self,
        features: Iterable[Feature],
        provided: dict[type, Any],
        db: Database,
        audit: AuditTrail,
        deadlines: Deadlines,
        record_reads: bool,
        status_of: Callable[[DomainError], int],
    ) -> None:
        self._db = db
        self._audit = audit
        self._deadlines = deadlines
        self._record_reads = record_reads
        self._status_of = status_of
        self.operations: dict[str, BoundOperation] = {}
        for feature in features:
            for operation in feature.operations.declared:
                if operation.name in self.operations:
                    raise ValueError(f"operation {operation.name} is declared twice")
                self.operations[operation.name] = BoundOperation(operation, Binder(operation, provided), feature)

    async def run(self, bound: BoundOperation, call: Call, raw: Callable[[Binder], Awaitable[Input]]) -> bytes | None:
        """The serialized answer, None where there is none. Raises `DomainError`; every other exception is a defect."""
        operation, arguments = bound.operation, None
        after = AfterCommit()
        try:
            authorize(operation.role, call)
            with self._deadlines.one():
                arguments = bound.binder.arguments(await raw(bound.binder))
                if bound.binder.writes:
                    answer = await self._write(bound, call, arguments, after)
                else:
                    answer, value = await self._read(bound, call, arguments)
        except TimeoutError:
            late = Timeout()
            self._refused(bound, call, arguments, late)
            raise late from None
        except DomainError as problem:
            error = _named_conflict(problem, bound)
            self._refused(bound, call, arguments, error)
            raise error from None
        except Exception as defect:
            self._refused(bound, call, arguments, DomainError(type(defect).__name__))
            raise
        if bound.binder.writes:
            # Committed: no deadline makes a failure of it any more.
            await self._publish(operation, after)
        elif self._record_reads:
            self._audit.record(self._row(operation, call, arguments, value))
        return answer

    async def _read(self, bound: BoundOperation, call: Call, arguments: dict[str, Any]) -> tuple[bytes | None, Any]:
        binder = bound.binder
        values = {**arguments, **binder.given.provided}
        if binder.given.caller:
            values[binder.given.caller] = call.caller
        if binder.given.connection is None:
            value = await bound.operation.handler(**values)
        else:
            async with self._db.read() as connection:
                value = await bound.operation.handler(**values, **{binder.given.connection: connection})
        return (None if value is None else binder.dump(value)), value

    async def _write(
        self, bound: BoundOperation, call: Call, arguments: dict[str, Any], after: AfterCommit
    ) -> bytes | None:
        """The change and its audit row commit together, before the answer is sent."""
        binder, operation = bound.binder, bound.operation
        values = {**arguments, **binder.given.provided}
        if binder.given.caller:
            values[binder.given.caller] = call.caller
        if binder.given.after_commit:
            values[binder.given.after_commit] = after
        assert binder.given.connection is not None
        async with self._db.write() as connection:
            value = await operation.handler(**values, **{binder.given.connection: connection})
            answer = None if value is None else binder.dump(value)
            await self._audit.insert(connection, self._row(operation, call, arguments, value))
        return answer

    @staticmethod
    async def _publish(operation: Operation, after: AfterCommit) -> None:
        for publish in after:
            try:
                await publish()
            except Exception as error:
                log.warning("after_commit_failed", operation=operation.name, error=repr(error)[:200])

    def _refused(self, bound: BoundOperation, call: Call, arguments: dict[str, Any] | None, error: DomainError) -> None:
        denied = isinstance(error, Unauthenticated | Forbidden)
        outcome, status = "denied" if denied else "failure", self._status_of(error)
        self._audit.record(self._row(bound.operation, call, arguments, None, outcome, status, error.code))

    def _row(
        self,
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
            _resource(operation, arguments, value),
            outcome=outcome,
            status=operation.status if status is None else status,
            error=error,
        )


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


def _resource(operation: Operation, arguments: dict[str, Any] | None, value: Any) -> str:
    """`authors/42`: the path with its fields filled in, and the new row's id after a create."""
    path = operation.path.removeprefix("/")
    if "{" in path and arguments is not None:
        path = path.format_map(arguments)
    elif operation.status == 201 and (created := getattr(value, "id", None)) is not None:
        path = f"{path}/{created}"
    return path


def _named_conflict(error: DomainError, bound: BoundOperation) -> DomainError:
    """A violated constraint, in the words of the feature."""
    if isinstance(error, Conflict) and (constraint := error.extra.pop("constraint", None)) is not None:
        return Conflict(bound.conflicts.get(constraint))
    return error
