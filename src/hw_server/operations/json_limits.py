"""Limits on JSON before it is validated: a validator makes an error of each unknown member, a parser an object of each list,
so that one MiB of them stops the event loop for a second."""

import re
from json import detect_encoding

from hw_server.errors import PayloadTooLarge

# Also matches an unterminated string, so that no text is scanned twice.
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def limit_members(data: bytes, limit: int) -> None:
    """Raises `PayloadTooLarge` where more than `limit` members, items, objects and lists are in a text."""
    if len(data) <= limit:
        return
    if not detect_encoding(data).startswith("utf-8"):
        raise PayloadTooLarge(f"a JSON text of more than {limit} bytes must be UTF-8")  # RFC 8259, section 8.1
    if _marks(data) <= limit:
        return
    # A text within the limit has no more strings than that; to look for all of 100,000 takes 30 ms.
    most = 2 * limit + 1
    rest, strings = STRING.subn(b"", data, most + 1)
    if strings > most or _marks(rest) > limit:
        raise PayloadTooLarge(f"at most {limit} members and items in one JSON text")


def _marks(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")
