"""What all benchmarks share: interleaved runs, medians, ratios, and one JSON line per result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pymongo import monitoring

Run = Callable[[], Mapping[str, float]]

ROOT = Path(__file__).parents[1]
FAILED = "failed_runs"


def options(description: str, **defaults: int | str) -> argparse.Namespace:
    """``--runs`` and the numbers and texts of one benchmark, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in {"runs": 5, **defaults}.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"default {default!r}")
    return parser.parse_args()


def interleaved(contenders: Mapping[str, Run], *, runs: int) -> dict[str, dict[str, list[float]]]:
    """Run A B A B …, so that a disturbance of the machine meets all alike; every figure of every run.

    A run that raises is told on the error output and counted as ``failed_runs``: the others go on.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for number in range(runs):
        for name, run in contenders.items():
            for figure, value in _figures(name, run).items():
                found[name].setdefault(figure, []).append(value)
        print(f"run {number + 1} of {runs} done", file=sys.stderr)
    return found


def _figures(name: str, run: Run) -> Mapping[str, float]:
    try:
        return run()
    except Exception:  # whatever a peer raises
        print(f"{name} failed:\n{traceback.format_exc()}", file=sys.stderr)
        return {FAILED: 1.0}


def medians(found: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    """The median of every figure; of the runs that failed how many."""
    return {
        name: {
            figure: sum(values) if figure == FAILED else statistics.median(values)
            for figure, values in figures.items()
        }
        for name, figures in found.items()
    }


def watch_writes() -> Counter[str]:
    """Counts, by write concern on the wire, what clients built from now on write (transactions by commit)."""
    seen = Counter[str]()
    writes = {"insert", "update", "delete", "findAndModify", "commitTransaction"}

    class Listener(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            name, command = event.command_name, event.command
            if name in writes and (name == "commitTransaction" or "autocommit" not in command):
                concern = command.get("writeConcern", {})
                seen[f"w={concern.get('w')}, j={concern.get('j')}"] += 1

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

        def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    monitoring.register(Listener())
    return seen


def report(question: str, found: Mapping[str, Mapping[str, list[float]]], **facts: Any) -> None:
    """Print the medians as a table on the error output, and everything as one line of JSON."""
    middle = medians(found)
    width = max(len(name) for name in middle)
    for name, figures in middle.items():
        print(
            f"{name.ljust(width)}  " + "  ".join(f"{k} {v:,.1f}" for k, v in figures.items()), file=sys.stderr
        )
    for name, fact in facts.items():
        print(f"{name}: {fact}", file=sys.stderr)
    print(json.dumps({"question": question, "machine": machine(), **facts, "medians": middle, "runs": found}))


def last_result(path: Path) -> dict[str, Any]:
    """What ``report`` printed into a file."""
    found: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """Where this was measured."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": done.stdout.strip(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
