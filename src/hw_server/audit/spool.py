"""Audit rows on disk while PostgreSQL is out of reach: segments of JSON lines. A lock on the file makes a segment the property of
one process; when that one ends, the first process that finds the segment takes it over."""

import asyncio
import fcntl
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from hw_server.observability.metrics import Metrics
from hw_server.operations import AuditRow

T = TypeVar("T")
ROW: TypeAdapter[AuditRow] = TypeAdapter(AuditRow)
SEGMENT_BYTES = 1_048_576


def segment_name() -> str:
    """A name in the order of time, that no other segment has."""
    return f"{datetime.now().astimezone():%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}.ndjson"


class Segment:
    """A file of the spool that this process has locked."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self.file = file

    @property
    def name(self) -> str:
        return self.path.name

    def append(self, data: bytes) -> bool:
        """Appends lines and syncs them to disk. Returns False when the disk refuses; then none of them is left in the file."""
        end = self.file.seek(0, os.SEEK_END)
        try:
            unwritten = memoryview(data)
            while unwritten:
                unwritten = unwritten[self.file.write(unwritten) :]
            os.fsync(self.file.fileno())
        except OSError:
            with suppress(OSError):
                self.file.truncate(end)
            return False
        return True

    def rows(self) -> list[AuditRow]:
        """The rows of all complete lines; a crash may have cut the last one off. Raises ValueError for a line that is no row."""
        self.file.seek(0)
        return [ROW.validate_json(line) for line in self.file.read().split(b"\n")[:-1]]


class Spool:
    """The segments in `folder`, `max_bytes` together at most. All work on files is done in one thread of its own, in the order
    in which it was asked for: the event loop never waits for a disk, and a caller that is cancelled leaves nothing half done."""

    def __init__(self, folder: Path, max_bytes: int, metrics: Metrics) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._bytes = metrics.audit_spill_bytes
        self._open: Segment | None = None
        self._thread = ThreadPoolExecutor(1, "spool")

    async def append(self, rows: list[AuditRow], name: str | None = None) -> int:
        """Writes rows durably, as a segment of their own where they have a `name`. Returns how many were written: none when the
        spool is full or the disk refuses, all but those that cannot be encoded else."""
        return await self._run(lambda: self._append(rows, name))

    async def oldest(self) -> tuple[Segment, list[AuditRow] | ValueError] | None:
        """The oldest segment that no other process holds, with its rows or why they cannot be read."""
        return await self._run(self._oldest)

    async def waiting(self) -> bool:
        return await self._run(lambda: bool(self._segments()))

    async def remove(self, segment: Segment) -> None:
        await self._run(lambda: self._remove(segment))

    async def quarantine(self, segment: Segment) -> int:
        """Renames a segment that cannot be replayed, for a person to look at; nothing reads it again. Returns its number of lines."""
        return await self._run(lambda: self._quarantine(segment))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _append(self, rows: list[AuditRow], name: str | None) -> int:
        lines = [line for row in rows if (line := _line(row)) is not None]
        data = b"".join(lines)
        try:
            if self._size() + len(data) > self._max_bytes:
                return 0
            segment = self._create(name) if name else self._open or self._create(segment_name())
        except OSError:
            return 0
        written = segment.append(data)
        if name is None:
            self._open = segment if written and segment.file.tell() < SEGMENT_BYTES else None
        if segment is not self._open:
            segment.file.close()  # releases its lock: any process may replay it
        self._bytes.set(self._size())
        return len(lines) if written else 0

    def _oldest(self) -> tuple[Segment, list[AuditRow] | ValueError] | None:
        segment = self._take_oldest()
        if segment is None:
            return None
        try:
            return segment, segment.rows()
        except ValueError as error:
            return segment, error

    def _take_oldest(self) -> Segment | None:
        for path in self._segments():
            if self._open is not None and path == self._open.path:
                segment, self._open = self._open, None
                return segment
            with suppress(OSError):
                file = path.open("r+b", buffering=0)
                if _locked(file) and path.exists():
                    return Segment(path, file)
                file.close()
        return None

    def _remove(self, segment: Segment) -> None:
        segment.path.unlink(missing_ok=True)
        segment.file.close()
        self._bytes.set(self._size())

    def _quarantine(self, segment: Segment) -> int:
        segment.path.rename(segment.path.with_suffix(".quarantined"))
        segment.file.seek(0)
        lines = segment.file.read().count(b"\n")
        segment.file.close()
        self._bytes.set(self._size())
        return lines

    def _size(self) -> int:
        total = 0
        for path in self._segments():
            with suppress(FileNotFoundError):  # replayed by another process meanwhile
                total += path.stat().st_size
        return total

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob("*.ndjson")) if self._folder.is_dir() else []

    def _create(self, name: str) -> Segment:
        """Readable by the server's user only: rows name people and what they did."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / name
        file = FileIO(path, "x+", opener=lambda name, flags: os.open(name, flags, 0o600))
        _locked(file)
        return Segment(path, file)


def _line(row: AuditRow) -> bytes | None:
    try:
        return ROW.dump_json(row) + b"\n"
    except ValueError:
        return None


def _locked(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
