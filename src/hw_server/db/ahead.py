"""Messages of PostgreSQL's protocol that are sent ahead of a statement of the driver, without a Sync of their own: the server
answers them together with it, which saves their round trips. Where one of them fails, the server skips all up to the next Sync,
which ends that statement, and the statement raises the error. A simple query has no Sync: skipped, it would not be answered."""

from collections.abc import Sequence
from datetime import datetime
from struct import Struct

TEXT, BINARY = b"\0\0", b"\0\1"
NULL = b"\xff\xff\xff\xff"
TEXT_OID = 25
_int16, _int32 = Struct(">h").pack, Struct(">i").pack
_array = Struct(">5i").pack  # dimensions, NULLs, element type, length, lower bound
_EXECUTE = b"E\0\0\0\x09\0\0\0\0\0"  # the unnamed portal, all rows

Argument = str | int | float | datetime | Sequence[str] | None

SCALARS = (str, int, float, datetime)


def execute(statement: str, arguments: Sequence[Argument]) -> bytes:
    """Bind and Execute of a prepared statement, by its name. Raises `UnicodeEncodeError` for a lone surrogate."""
    # As text, but for arrays, whose parts would need quotes.
    formats = [TEXT if isinstance(argument, SCALARS) or argument is None else BINARY for argument in arguments]
    values = [_value(argument) for argument in arguments]
    count = _int16(len(arguments))
    body = b"".join((b"\0", statement.encode(), b"\0", count, *formats, count, *values, b"\0\0"))
    return b"B" + _int32(len(body) + 4) + body + _EXECUTE


def _value(argument: Argument) -> bytes:
    if argument is None:
        return NULL
    if isinstance(argument, str):
        return _sized(argument.encode())
    if isinstance(argument, SCALARS):
        return _sized(str(argument).encode())
    return _sized(_array(1, 0, TEXT_OID, len(argument), 1) + b"".join([_sized(part.encode()) for part in argument]))


def _sized(value: bytes) -> bytes:
    return _int32(len(value)) + value


BEGIN = b"P\0\0\0\x0d\0BEGIN\0\0\0" + execute("", ())  # Parse of the unnamed statement, without parameters
