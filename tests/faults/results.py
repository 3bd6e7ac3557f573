"""One line of the results table for each row that was run, written before it is judged."""

import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs

from eventdriven_sync.devserver import Mongod, NatsServer
from tests.faults.checker import Verdict


@attrs.frozen(kw_only=True)
class Row:
    """A row of the catalogue as it is run.

    Attributes:
        name: as in the catalogue, such as ``F2``.
        fault: what is done, in words.
        seed: what moments and victims are drawn from.
        file: where the line goes; None is nowhere.
    """

    name: str
    fault: str
    seed: int
    file: Path | None

    def judge(self, verdict: Verdict, *, note: str = "", **bounds: tuple[float, float]) -> None:
        """Write the line, then assert: nothing lost, effects exactly once, audit ok, every bound kept.

        Args:
            bounds: by name, what was measured and the most it may be.
        """
        figures = {
            "events": verdict.accepted,
            "lost": len(verdict.lost),
            "dup_starts": verdict.dup_starts,
            "dup_effects": verdict.dup_effects,
            "dead": sum(verdict.dead.values()),
            "drain_seconds": round(verdict.drain, 1),
            "seconds": round(verdict.seconds, 1),
        }
        wrong = _wrong(verdict) + _exceeded(bounds)
        self.write(figures, bounds=bounds, note=note, ok=not wrong)
        assert not wrong, f"{self.name}, seed {self.seed}: {'; '.join(wrong)}\n{verdict}"

    def keep(self, figures: Mapping[str, Any], *, note: str = "", **bounds: tuple[float, float]) -> None:
        """The line of a row that is judged by its bounds alone; asserts that they are kept."""
        wrong = _exceeded(bounds)
        self.write(figures, bounds=bounds, note=note, ok=not wrong)
        assert not wrong, f"{self.name}, {self.fault}, seed {self.seed}: {'; '.join(wrong)}"

    def write(
        self,
        figures: Mapping[str, Any],
        *,
        bounds: Mapping[str, tuple[float, float]],
        note: str = "",
        ok: bool = True,
    ) -> None:
        """Only the line, for a row that is no run of events: it asserts by itself."""
        line = {
            "row": self.name,
            "fault": self.fault,
            "seed": self.seed,
            **figures,
            "bounds": {name: [_short(value), limit] for name, (value, limit) in bounds.items()},
            "note": note,
            "ok": ok,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "versions": versions(),
        }
        print(json.dumps(line))
        if self.file:
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")


def _wrong(verdict: Verdict) -> list[str]:
    wrong = []
    if verdict.unpublished:
        wrong.append(f"{verdict.unpublished} were not published in time")
    if verdict.lost:
        wrong.append(f"{len(verdict.lost)} lost: {', '.join(verdict.lost[:5])}")
    if verdict.dup_effects:
        wrong.append(f"{verdict.dup_effects} effects too many")
    if verdict.audit_exit:
        wrong.append(f"eventdriven audit ended with {verdict.audit_exit}")
    if not verdict.accepted:
        wrong.append("nothing was accepted")
    return wrong


def _exceeded(bounds: Mapping[str, tuple[float, float]]) -> list[str]:
    return [
        f"{name} is {value:g}, at most {limit:g}" for name, (value, limit) in bounds.items() if value > limit
    ]


@cache
def versions() -> dict[str, str]:
    """Of everything that took part."""
    names = ("nats-py", "pymongo", "eventdriven_sync")
    own = {name: importlib.metadata.version(name) for name in names}
    here = Path()
    nats = _first_line([NatsServer(here).find_binary(), "--version"]).split("v")[-1]
    mongod = _first_line([Mongod(here).find_binary(), "--version"]).split("v")[-1]
    return own | {"nats-server": nats, "mongod": mongod, "python": platform.python_version()}


def _first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _short(value: float) -> float:
    return round(value, 2)
