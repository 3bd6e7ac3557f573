"""What all benchmarks share: interleaved runs, medians, ratios, and one JSON line per result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pymongo import monitoring

Run = Callable[[], Mapping[str, float]]

ROOT = Path(__file__).parents[1]


def options(description: str, **defaults: int) -> argparse.Namespace:
    """``--runs`` and the numbers of one benchmark, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in {"runs": 5, **defaults}.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}"
        )
    return parser.parse_args()


def interleaved(contenders: Mapping[str, Run], *, runs: int) -> dict[str, dict[str, list[float]]]:
    """Run A B A B …, so that a disturbance of the machine meets all alike; every figure of every run."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for number in range(runs):
        for name, run in contenders.items():
            for figure, value in run().items():
                found[name].setdefault(figure, []).append(value)
        print(f"run {number + 1} of {runs} done", file=sys.stderr)
    return found


def medians(found: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    """The median of every figure."""
    return {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in found.items()
    }


def cpu_us(body: Callable[[], object], *, times: int) -> dict[str, float]:
    """CPU and wall microseconds of this process for one call of ``body``, over so many."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        body()
    return {
        "cpu_us": (time.process_time() - cpu) * 1e6 / times,
        "wall_us": (time.perf_counter() - wall) * 1e6 / times,
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
