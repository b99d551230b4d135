"""Errors of the driver: what each means to a caller, to the pool and to a server that starts."""

from socket import gaierror

import asyncpg

from hw_server.errors import Conflict, DomainError, InvalidInput, Timeout, Unavailable

# The server is away, starts or stops: the same attempt may succeed later. Of OSError only what a network does; a missing
# file or a refused certificate is an OSError too, and waiting mends neither.
TRANSIENT = (
    ConnectionError,
    TimeoutError,
    gaierror,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)
# Answered with 503: also what an operator has to mend, as no caller can.
UNREACHABLE = (
    OSError,
    asyncpg.InterfaceError,  # the connection was closed under its user
    asyncpg.InternalClientError,  # the server ended an idle session, and the driver has not read all of it yet
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,  # the address leads to a standby, as after a failover
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
# PostgreSQL refused one statement, or the caller raised on purpose: the connection itself is as good as before.
REUSABLE_AFTER = (DomainError, asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)


def domain_error(error: BaseException) -> DomainError | None:
    """The domain error for a driver error; None where it is a defect of the server."""
    match error:
        case asyncpg.ForeignKeyViolationError() | asyncpg.RestrictViolationError():
            return Conflict(constraint=error.constraint_name, referenced=_is_referenced(error))
        case asyncpg.UniqueViolationError() | asyncpg.ExclusionViolationError():
            return Conflict(constraint=error.constraint_name)
        case asyncpg.CheckViolationError():
            return InvalidInput([], f"the value breaks the rule {error.constraint_name}")
        case asyncpg.DataError():
            return InvalidInput([], "a value does not fit the database's type")
        case asyncpg.QueryCanceledError():
            return Timeout("the database took too long")
        case asyncpg.DeadlockDetectedError() | asyncpg.SerializationError():
            return Conflict("another request changed the same data; try again")
        case asyncpg.LockNotAvailableError():
            return Unavailable("what the request needs is locked; try again")
        case TimeoutError():
            return Unavailable("the database did not answer in time")
        case _ if isinstance(error, UNREACHABLE):
            return Unavailable("the database is out of reach")
    return None


def _is_referenced(error: asyncpg.PostgresError) -> bool:
    """Whether a referenced row was to be deleted, rather than a row written that refers to none. PostgreSQL names the same
    constraint and the same (referring) table for both; the detail names the other table of the two."""
    # In a table that refers to itself both are the same; the message begins so where `lc_messages` is English.
    if (error.message or "").startswith("insert or update"):
        return False
    return f'"{error.table_name}"' in (error.detail or "")


def is_transient(error: BaseException) -> bool:
    """Whether a later attempt may succeed. Looks through SQLAlchemy's wrappers, which name the driver's error as cause."""
    cause: BaseException | None = error
    while cause is not None:
        # asyncio raises a plain OSError where a host has several addresses and none answers, or no route leads there.
        if isinstance(cause, TRANSIENT) or type(cause) is OSError:
            return True
        cause = cause.__cause__
    return False
