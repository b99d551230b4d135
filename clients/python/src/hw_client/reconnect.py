"""When to connect again, and after how long."""

import random
from dataclasses import dataclass

ENDS_FOR_GOOD = frozenset({1000, 1002, 1003, 1007, 1008, 1009, 1010})  # RFC 6455, section 7.4.1
TOKEN_EXPIRED = 4402
STABLE = 5.0  # seconds after which a connection counts as a success


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential with full jitter: a random time up to `first` seconds, doubled with each failure up to `longest`.
    Many clients of one server then do not come back at the same moment."""

    first: float = 0.5
    longest: float = 30.0

    def delay(self, failures: int) -> float:
        return random.uniform(0, min(self.longest, self.first * 2 ** min(failures, 30)))  # noqa: S311 - no secret


def reconnectable(code: int | None, *, renewable: bool = False) -> bool:
    """Whether a close code says to connect again; None is an end without a close frame. The server's own codes are told
    apart by range: 4400-4499 do not reconnect, 4500-4599 do; after an expired token one that is `renewable` does, too."""
    if code == TOKEN_EXPIRED:
        return renewable
    return code is None or not (code in ENDS_FOR_GOOD or 4400 <= code < 4500)
