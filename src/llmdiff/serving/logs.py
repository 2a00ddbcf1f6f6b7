"""Logs as JSON lines; prompts are omitted by default."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import IO, Any

LOG = logging.getLogger("llmdiff.serving")


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time, level, logger, event, and extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The exception's class and location without its message, which may quote the prompt.
            line["exception"] = record.exc_info[0].__name__
            line["frames"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(record.exc_info[2])
            ]
        return json.dumps(line, default=str)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Write one event with its fields."""
    LOG.log(level, event, exc_info=error, extra={"fields": fields})


def log_as_json(stream: IO[str] | None = None) -> None:
    """Write our events, the web server's and the library's to one stream as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    for name in ("llmdiff", "llmdiff_lab", "uvicorn", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.disabled = False
    LOG.disabled = False  # a library's logging configuration may have disabled existing loggers
    # Our log line per request has more fields, and never the query string.
    logging.getLogger("uvicorn.access").disabled = True
