"""CPU, memory and files of a process, and the lag of its event loop. prometheus-client's own collector covers only the process
that answers a scrape; these add up over all workers."""

import asyncio
import os
import resource
import time
from pathlib import Path

from hw_server.observability.metrics import Metrics

INTERVAL = 0.25  # seconds between two measurements of the lag
SAMPLE = 5.0  # seconds between two samples of the process: with many sockets listing its files is slow
PAGE = resource.getpagesize()
TICKS = os.sysconf("SC_CLK_TCK")


class ProcessMonitor:
    """A supervised service."""

    name = "process"

    def __init__(self, metrics: Metrics) -> None:
        self._lag = metrics.event_loop_lag
        self._cpu = metrics.process_cpu
        self._resident = metrics.process_resident
        self._virtual = metrics.process_virtual
        self._files = metrics.process_open_files
        self._counted = 0.0  # seconds of CPU exported so far
        metrics.process_max_files.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        metrics.process_start.set(_started())

    async def run(self) -> None:
        sampled = -SAMPLE
        while True:
            due = time.monotonic() + INTERVAL
            await asyncio.sleep(INTERVAL)
            now = time.monotonic()
            self._lag.observe(max(0.0, now - due))
            if now - sampled >= SAMPLE:
                sampled = now
                self._sample()

    def _sample(self) -> None:
        used = time.process_time()
        self._cpu.inc(used - self._counted)
        self._counted = used
        virtual, resident = Path("/proc/self/statm").read_text().split()[:2]
        self._resident.set(int(resident) * PAGE)
        self._virtual.set(int(virtual) * PAGE)
        self._files.set(sum(1 for _ in Path("/proc/self/fd").iterdir()))


def _started() -> float:
    """Unix time."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + ticks / TICKS
