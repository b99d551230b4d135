"""Local limits: a number a minute, with a burst. No round trip, so they can stand in front of what costs one."""

import time
from collections import OrderedDict


class Rate:
    """The generic cell rate algorithm: each item spends `interval` seconds; one is too many when more than `tolerance` seconds
    are spent ahead of the clock. The state of one caller is one number."""

    __slots__ = ("interval", "tolerance")

    def __init__(self, per_minute: float, burst: float) -> None:
        self.interval = 60 / per_minute
        self.tolerance = burst * self.interval


class Rates:
    """A rate for each of many callers, the least recently seen forgotten first."""

    SIZE = 10_000  # callers at most

    def __init__(self, per_minute: float) -> None:
        self._rate = Rate(per_minute, per_minute)
        self._spent: OrderedDict[str, float] = OrderedDict()

    def exhausted(self, who: str) -> bool:
        """Whether `who` may not take another; takes none."""
        return self._spent.get(who, 0.0) + self._rate.interval > time.monotonic() + self._rate.tolerance

    def take(self, who: str) -> bool:
        """Takes one; False where that is one too many."""
        now = time.monotonic()
        spent = max(self._spent.pop(who, 0.0), now) + self._rate.interval
        allowed = spent <= now + self._rate.tolerance
        self._spent[who] = spent if allowed else spent - self._rate.interval
        if len(self._spent) > self.SIZE:
            self._spent.popitem(last=False)
        return allowed
