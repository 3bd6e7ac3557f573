"""How the program logs: lines for people, or JSON lines for programs."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from eventdriven_sync.cli.words import clean_lines
from eventdriven_sync.documents import iso


def quiet() -> None:
    """Without further ado the library's log records go nowhere: what matters comes as an error."""
    logger = logging.getLogger("eventdriven_sync")
    if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        logger.addHandler(logging.NullHandler())


def configure_logging(level: str, *, as_json: bool) -> None:
    """Log to the error output. Logging that the application configured itself stays as it is."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else Lines())
    root.addHandler(handler)
    # Of other libraries only what is wrong; at their lower levels some log what events carry.
    root.setLevel(logging.WARNING)
    logging.getLogger("eventdriven_sync").setLevel(level.upper())


class Lines(logging.Formatter):
    """``12:03:05 WARNING Failed 1 times, …``; control characters in the message are shown as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the stack below it if there is one."""
        at = datetime.fromtimestamp(record.created, UTC).astimezone()
        line = f"{at:%H:%M:%S} {record.levelname:<7} {clean_lines(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object per record, with the facts that the library logs beside its words."""

    _OWN = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {
        "message",
        "asctime",
        "taskName",
    }

    def format(self, record: logging.LogRecord) -> str:
        """The object, as text."""
        found = {
            "time": iso(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        found |= {key: value for key, value in vars(record).items() if key not in self._OWN}
        if record.exc_info:
            found["stack"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


class WholeLines:
    """An output to which threads print whole lines: ``print`` hands over text and line break one by one.

    What a thread has begun comes out with its line break, by ``flush``, or when it is longer than 64 KiB.
    Thread-safe; everything else is the stream's own.
    """

    _LONGEST = 65_536

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the lines that are complete with this text; how many characters were taken: all."""
        thread = threading.get_ident()
        done, line_break, rest = (self._begun.pop(thread, "") + text).rpartition("\n")
        if len(rest) > self._LONGEST:
            done, line_break, rest = done + line_break, rest, ""
        if rest:
            self._begun[thread] = rest
        if line_break:
            self._stream.write(done + line_break)
        return len(text)

    def flush(self) -> None:
        """Write everything that was begun, by any thread."""
        for thread in list(self._begun):
            self._stream.write(self._begun.pop(thread, ""))
        self._stream.flush()
