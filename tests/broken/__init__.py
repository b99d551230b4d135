"""A feature whose background work fails, for the tests; no server ships it."""

import asyncio

from hw_server.operations import Feature
from tests import notes


class Failing:
    name = "failing"

    async def run(self) -> None:
        await asyncio.sleep(0.2)
        raise RuntimeError("it broke")


FEATURES = (*notes.FEATURES, Feature("broken", services=(lambda _parts: Failing(),)))
