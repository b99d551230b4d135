import asyncio

from hw_server.observability.metrics import Metrics

INTERVAL = 0.5  # seconds between two measurements


class LoopLag:
    """A supervised service: measures how much later than asked for the event loop wakes a task."""

    name = "loop-lag"

    def __init__(self, metrics: Metrics) -> None:
        self._lag = metrics.loop_lag

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL
            await asyncio.sleep(INTERVAL)
            self._lag.observe(max(0.0, loop.time() - due))
