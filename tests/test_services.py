"""Background services: one that fails ends the process, so that what supervises it starts another."""

import asyncio
import contextlib

from tests.conftest import Serve


async def test_a_failing_service_ends_the_process(serve: Serve) -> None:
    with contextlib.ExitStack() as ended:
        running = ended.enter_context(serve(HW_FEATURES="tests.broken:FEATURES"))
        assert await asyncio.to_thread(running.process.wait, 30) == 1
        [line] = [line for line in running.log() if line["event"] == "service_ended"]
    assert (line["service"], line["level"], "it broke" in line["error"]) == ("failing", "critical", True)
    assert [line for line in running.log() if line["event"] == "stopped"]
