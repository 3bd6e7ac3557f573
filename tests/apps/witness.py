"""An independent witness: what handlers did, appended to a file that no server and no kill can take back."""

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Witness:
    """Notes of all processes of one application, a JSON line each, in the order of writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()

    def note(self, what: str, **facts: Any) -> None:
        """Append a line. It is in the file when this returns, also if the process dies next."""
        facts |= {"what": what, "pid": os.getpid(), "thread": threading.get_ident(), "at": time.time()}
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, json.dumps(facts).encode() + b"\n")
        finally:
            os.close(file)

    def notes(self, what: str, **facts: Any) -> list[dict[str, Any]]:
        """The notes of this kind whose facts have these values."""
        lines = map(json.loads, self.path.read_text().splitlines())
        return [
            line
            for line in lines
            if line["what"] == what and all(line.get(name) == value for name, value in facts.items())
        ]

    def counts(self, what: str, by: str = "number") -> Counter[Any]:
        """How many notes of this kind there are for each value of a fact."""
        return Counter(line.get(by) for line in self.notes(what))

    def await_note(self, what: str, *, timeout: float = 60.0, **facts: Any) -> None:
        """Block until somebody wrote such a note: a gate that a test opens for handlers."""
        deadline = time.monotonic() + timeout
        while not self.notes(what, **facts):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody noted {what} {facts} within {timeout:g} s")
            threading.Event().wait(0.02)
