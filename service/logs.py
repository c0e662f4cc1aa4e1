"""Logs: one line a start, a load, an error; no record a request."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Literal

log = logging.getLogger("equipoise")


class _PlainFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO message key=value ...`, one line always."""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={value}" for key, value in _facts(record).items())
        line = f"{_stamp(record)} {record.levelname} {record.getMessage()}{facts}"
        return line.replace("\n", " | ")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        members = {"time": _stamp(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(members | _facts(record), default=str)


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _facts(record: logging.LogRecord) -> dict[str, object]:
    facts = dict(getattr(record, "facts", {}))
    if record.exc_info and record.exc_info[1] is not None:
        facts["traceback"] = "".join(traceback.format_exception(record.exc_info[1])).strip()
    return facts


def set_up_logging(form: Literal["plain", "json"], level: str) -> None:
    """All loggers to standard error, one line a record; of libraries' own not what they say of what clients send."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _PlainFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(level.upper())  # libraries log every picture at their lower levels
    for library, least in (("uvicorn", logging.ERROR), ("python_multipart", logging.ERROR), ("PIL", logging.CRITICAL)):
        logging.getLogger(library).setLevel(least)


def say(level: int, message: str, error: BaseException | None = None, **facts: object) -> None:
    """One log record with machine-readable facts."""
    log.log(level, message, exc_info=error, extra={"facts": facts})
