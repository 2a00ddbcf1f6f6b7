"""Logs as one JSON object a line, for machines that collect them; prompts stay out unless asked for."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import IO, Any

LOG = logging.getLogger("llmdiff.serving")


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time, level, logger, event, and the fields that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The class and the place, not the words: those of an encoder's error may quote the prompt.
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
    """Send our events, the web server's and the library's to one stream as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    for name in ("llmdiff", "llmdiff_lab", "uvicorn", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.disabled = False
    LOG.disabled = False  # a library that configures logging for itself disables all loggers that are there
    # Ours says more about every request, and never the query string.
    logging.getLogger("uvicorn.access").disabled = True
