"""One JSON object a line on stdout. Nothing logs a token or a body."""

import logging
import sys
from typing import Any

import structlog
from pydantic_core import to_json

from hw_server.settings import Log

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(settings: Log) -> None:
    """For this process, the libraries' loggers included."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.level]),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
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
