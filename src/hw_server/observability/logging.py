"""One JSON object a line on stdout, or lines for people to read. Nothing logs a token or a body."""

import asyncio
import atexit
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from pydantic_core import to_json

from hw_server.settings import LogSettings

FLUSH_INTERVAL = 0.05  # seconds a line may wait for others
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # what `console` puts around words
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class LoggedCall(Protocol):
    """The fields of the current call that log lines carry."""

    @property
    def request_id(self) -> str: ...

    @property
    def user_id(self) -> str | None: ...


current_call: ContextVar[LoggedCall | None] = ContextVar("current_call", default=None)


class StdoutWriter:
    """stdout, one system call for the lines of `FLUSH_INTERVAL`. Outside an event loop each line is written at once."""

    def __init__(self) -> None:
        self._pending: list[bytes] = []

    def msg(self, line: bytes) -> None:
        self._pending.append(line)
        if len(self._pending) > 1:
            return
        try:
            asyncio.get_running_loop().call_later(FLUSH_INTERVAL, self.flush)
        except RuntimeError:
            self.flush()

    debug = info = warning = error = critical = exception = msg

    def flush(self) -> None:
        lines, self._pending = self._pending, []
        if lines:
            sys.stdout.buffer.write(b"\n".join(lines) + b"\n")
            sys.stdout.buffer.flush()


STDOUT = StdoutWriter()  # stdout belongs to the process, not to an application
atexit.register(STDOUT.flush)


class RequestLog:
    """One line for each request or call. It is on the hot path, so JSON does without structlog's processors."""

    def __init__(self, settings: LogSettings) -> None:
        self.enabled = settings.requests and settings.level in ("debug", "info")
        self._console = settings.format == "console"

    def write(self, event: str, fields: dict[str, Any]) -> None:
        if self._console:
            structlog.get_logger().info(event, **fields)
            return
        stamp = datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
        STDOUT.msg(to_json({"timestamp": stamp, "level": "info", "event": event, **fields}))


def configure(settings: LogSettings) -> None:
    """For this process, the libraries' loggers included."""
    console = settings.format == "console"
    shared: list[Any] = [structlog.processors.add_log_level, _add_call]
    if console:
        shared += [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False), _drop_missing]
        # Always coloured: `hw logs` reads a file, and strips the colours where its own output is no terminal.
        as_text: Any = structlog.dev.ConsoleRenderer(
            colors=True,
            force_colors=True,
            sort_keys=False,
            pad_event_to=0,
            pad_level=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    else:
        shared += [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.format_exc_info]
        as_text = _as_text
    structlog.configure(
        processors=[*shared, _encoded(as_text) if console else _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.level]),
        logger_factory=lambda *_: STDOUT,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, as_text],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(LEVELS[settings.level], logging.WARNING), force=True)


def _add_call(_logger: Any, _name: str, event: Any) -> Any:
    """Request id and user of the call that is being served, so that lines of libraries and features can be found by them."""
    call = current_call.get()
    if call is not None:
        event.setdefault("request_id", call.request_id)
        event.setdefault("user_id", call.user_id)
    return event


def _drop_missing(_logger: Any, _name: str, event: Any) -> Any:
    return {name: value for name, value in event.items() if value is not None}


def _encoded(as_text: Any) -> Any:
    return lambda logger, name, event: as_text(logger, name, event).encode()


def _as_json(_logger: Any, _name: str, event: Any) -> bytes:
    return to_json(event, fallback=str, serialize_unknown=True)


def _as_text(_logger: Any, _name: str, event: Any) -> str:
    return _as_json(_logger, _name, event).decode()
