"""Audit rows on disk while PostgreSQL is out of reach: segments of JSON lines. A lock on the file makes a segment the property of
one process; when that one ends, the first process that finds the segment takes it over."""

import fcntl
import os
import secrets
from contextlib import suppress
from datetime import datetime
from io import FileIO
from pathlib import Path

from pydantic import TypeAdapter

from hw_server.observability.metrics import Metrics
from hw_server.operations import AuditRow

ROW: TypeAdapter[AuditRow] = TypeAdapter(AuditRow)
SEGMENT_BYTES = 1_048_576


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
    """The segments in `folder`, `max_bytes` together at most."""

    def __init__(self, folder: Path, max_bytes: int, metrics: Metrics) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._bytes = metrics.audit_spill_bytes
        self._open: Segment | None = None

    def append(self, rows: list[AuditRow]) -> bool:
        """Writes rows durably. Returns False when the spool is full or the disk refuses."""
        data = b"".join(ROW.dump_json(row) + b"\n" for row in rows)
        try:
            if self.size() + len(data) > self._max_bytes:
                return False
            segment = self._open or self._create()
        except OSError:
            return False
        written = segment.append(data)
        self._open = segment if written and segment.file.tell() < SEGMENT_BYTES else None
        self._bytes.set(self.size())
        return written

    @property
    def waiting(self) -> bool:
        return bool(self._segments())

    def size(self) -> int:
        return sum(path.stat().st_size for path in self._segments())

    def oldest(self) -> Segment | None:
        """The oldest segment that no other process holds."""
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

    def remove(self, segment: Segment) -> None:
        segment.path.unlink(missing_ok=True)
        segment.file.close()
        self._bytes.set(self.size())

    def quarantine(self, segment: Segment) -> int:
        """Renames a segment that cannot be replayed, for a person to look at; nothing reads it again. Returns its number of lines."""
        segment.path.rename(segment.path.with_suffix(".quarantined"))
        segment.file.seek(0)
        lines = segment.file.read().count(b"\n")
        segment.file.close()
        self._bytes.set(self.size())
        return lines

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob("*.ndjson")) if self._folder.is_dir() else []

    def _create(self) -> Segment:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{datetime.now().astimezone():%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}.ndjson"
        path = self._folder / name
        file = path.open("x+b", buffering=0)
        _locked(file)
        return Segment(path, file)


def _locked(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
