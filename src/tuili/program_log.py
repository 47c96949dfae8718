"""The program's own warnings and errors on stderr: as text, or as an object of JSON a line.

Processes that are started from here write theirs in the same form.
"""

from __future__ import annotations

import json
import logging
import os
import time

LOG_FORMATS = ("text", "json")
_VARIABLE = "TUILI_LOG_FORMAT"


def start_logging(log_format: str | None = None) -> None:
    """Sets up this process, and what it starts, in one of LOG_FORMATS; None is what it was started with."""
    if log_format is None:
        log_format = os.environ.get(_VARIABLE, "text")
    hand_down(log_format)
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLine() if log_format == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def hand_down(log_format: str) -> None:
    """Has processes that are started from here write in that form."""
    os.environ[_VARIABLE] = log_format


class JsonLine(logging.Formatter):
    """time, level, logger, process and message, and what went wrong in `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)
