"""A feature that tells what only a collection frees, for the tests; no server ships it."""

import gc

from hw_server.operations import Feature, Operations
from tests import rooms

operations = Operations("/garbage")


@operations.post("garbage.collect", "/collect", public=True, reads=True)
async def collect() -> int:
    """The number of objects that were in cycles of references."""
    return gc.collect()


@operations.post("garbage.fail", "/fail", public=True, reads=True)
async def fail() -> None:
    """A defect of a feature."""
    raise ValueError


FEATURES = (*rooms.FEATURES, Feature("garbage", operations))
SETTINGS = {"HW_FEATURES": "tests.garbage:FEATURES"}
