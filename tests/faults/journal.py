"""The witness: a file that processes append to. No server and no kill can take a line back."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """Notes of any number of processes. Thread-safe; a written line is there though its writer dies.

    Every note has the time ``at`` which it was written by the writer's clock, and ``monotonic``, which all
    processes of a machine share and nobody sets.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, **facts: Any) -> None:
        """Append a line; short lines of several processes never mix."""
        facts |= {
            "what": what,
            "at": time.time(),
            "monotonic": time.monotonic(),
            "pid": os.getpid(),
            "thread": threading.get_native_id(),
        }
        os.write(self._file, json.dumps(facts).encode() + b"\n")

    def notes(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """The lines of these kinds, in the order of writing; of all kinds if none is named."""
        marks = [_mark(kind) for kind in kinds] or [b""]
        with self.path.open("rb") as lines:
            for line in lines:
                # The last one may still be being written; millions are not decoded to be thrown away.
                if line.endswith(b"\n") and any(mark in line for mark in marks):
                    yield json.loads(line)

    def count(self, what: str) -> int:
        """How many lines of a kind there are, found without decoding them."""
        mark = _mark(what)
        with self.path.open("rb") as lines:
            return sum(mark in line for line in lines)

    def close(self) -> None:
        """Nothing is noted any more; it can still be read."""
        os.close(self._file)


def _mark(kind: str) -> bytes:
    """What a line of this kind contains, and no other: quotes within a text are written with a backslash."""
    return f'"what": "{kind}"'.encode()
