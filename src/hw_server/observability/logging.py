"""One JSON object a line on stdout. Nothing logs a token or a body."""

import asyncio
import atexit
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic_core import to_json

from hw_server.settings import LogSettings

FLUSH = 0.05  # seconds a line may wait for others
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Lines:
    """stdout, one system call for the lines of a moment. Outside an event loop each line is written at once."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []

    def msg(self, line: bytes) -> None:
        self._waiting.append(line)
        if len(self._waiting) > 1:
            return
        try:
            asyncio.get_running_loop().call_later(FLUSH, self.flush)
        except RuntimeError:
            self.flush()

    debug = info = warning = error = critical = exception = msg

    def flush(self) -> None:
        lines, self._waiting = self._waiting, []
        if lines:
            sys.stdout.buffer.write(b"\n".join(lines) + b"\n")
            sys.stdout.buffer.flush()


LINES = Lines()  # stdout is the process's own
atexit.register(LINES.flush)


class RequestLog:
    """One line for each request or call: the hot path, so without structlog's steps."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def write(self, event: str, fields: dict[str, Any]) -> None:
        if self._enabled:
            stamp = datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
            LINES.msg(to_json({"timestamp": stamp, "level": "info", "event": event, **fields}))


def configure(settings: LogSettings) -> None:
    """For this process, the libraries' loggers included."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.level]),
        logger_factory=lambda *_: LINES,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _as_text],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(LEVELS[settings.level], logging.WARNING), force=True)


def _as_json(_logger: Any, _name: str, event: Any) -> bytes:
    return to_json(event, fallback=str, serialize_unknown=True)


def _as_text(_logger: Any, _name: str, event: Any) -> str:
    return to_json(event, fallback=str, serialize_unknown=True).decode()
