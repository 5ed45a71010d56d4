"""Structured logs on stderr: for people, or as one JSON object per line."""

import io
import logging
import sys
import time
from typing import Any

import structlog

from server.telemetry.line_limit import LineLimit

STDERR_FD = 2

_threshold = [logging.INFO]
_limit = LineLimit(time.monotonic)


def configure(log_format: str, level: str) -> None:
    """Sets logging up for this process. `log_format` is text or json, `level` a name such as info."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    set_level(level)
    structlog.configure(
        processors=[
            _loud_enough,
            _limited,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=_stderr()),
        cache_logger_on_first_use=True,
    )


def set_level(level: str) -> None:
    """From now on. Loggers are cached, so the level is looked at for every line."""
    _threshold[0] = logging.getLevelNamesMapping()[level.upper()]


def _loud_enough(_logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if structlog.processors.NAME_TO_LEVEL[method] < _threshold[0]:
        raise structlog.DropEvent
    return event


def _limited(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    left_out = _limit.admit(event["event"])
    if left_out is None:
        raise structlog.DropEvent
    if left_out:
        event["lines_left_out"] = left_out
    return event


class _Unfailing(io.FileIO):
    """Drops what cannot be written: its reader is gone, or the disk is full.

    Raised instead, the error would stop the supervisor in the middle of a drain or of mending a death.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _stderr() -> io.TextIOWrapper:
    """Stderr, one write per line, so that the lines of several processes do not mix."""
    raw = _Unfailing(STDERR_FD, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
