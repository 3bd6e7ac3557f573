"""Runs all benchmarks and writes their tables into the README.

``python -m benchmarks.everything`` takes up to an hour on two cores; ``--quick`` some minutes, to see that it
all works. For each question a JSON file and a log go to ``--out``. A question that fails does not keep the
others from being asked; the README then has the answer of the last time that is in ``--out``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs

from benchmarks import harness, tables

README = Path(__file__).parent / "README.md"
LIVE = "peers_live"
LIMIT = 1800.0  # seconds for one question: about three times what the longest should take


@attrs.frozen(kw_only=True)
class Question:
    """A benchmark with its options, and with smaller ones to try it out.

    Attributes:
        module: the benchmark's, the question's own name by default.
        runs: at most so many, of what takes long and hardly varies.
    """

    full: dict[str, int] = attrs.field(factory=dict)
    quick: dict[str, int] = attrs.field(factory=dict)
    module: str = ""
    runs: int = 5


# What needs another's answer comes after it.
QUESTIONS = {
    "peers_publish": Question(full={"events": 9600}, quick={"events": 320}),
    "peers_handle": Question(full={"events": 16_000}, quick={"events": 320}),
    LIVE: Question(full={"events": 8000}, quick={"events": 320}),
    "peers_latency": Question(full={"rate": 200, "seconds": 8}, quick={"seconds": 1}),
    "peers_latency_half": Question(module="peers_latency", full={"seconds": 6}, quick={"seconds": 1}),
    "writes": Question(full={"writes": 300}, quick={"writes": 20}),
    "worker": Question(full={"events": 20_000}, quick={"events": 1000}),
    "processes": Question(full={"events": 20_000}, quick={"events": 1000}),
    "batches": Question(full={"events": 20_000}, quick={"events": 1000}),
    "recovery": Question(full={"events": 5000}, quick={"events": 500}),
    "refill": Question(full={"events": 5000}, quick={"events": 500}),
    "backlog": Question(full={"events": 100_000}, quick={"events": 2000}),
    "backlog_memory": Question(module="backlog", full={"events": 1_000_000}, quick={"events": 3000}, runs=1),
    "growth": Question(full={"largest": 1_000_000}, quick={"largest": 10_000, "events": 500}),
    "idle": Question(full={"seconds": 30}, quick={"seconds": 3}, runs=3),
    "startup": Question(),
    "flask_overhead": Question(full={"requests": 2000}, quick={"requests": 100}),
}


def ask(name: str, *, quick: bool, runs: int, out: Path) -> dict[str, Any]:
    """Run one benchmark in a process of its own; its result, also in a file.

    Raises:
        subprocess.SubprocessError, IndexError, ValueError: it failed, hung or said nothing.
    """
    question = QUESTIONS[name]
    numbers = question.quick if quick else question.full
    options = [f"--{key}={value}" for key, value in numbers.items()]
    if name == "peers_latency_half":
        options.append(f"--live={out / LIVE}.json")
    command = [sys.executable, "-m", f"benchmarks.{question.module or name}", *options]
    command.append(f"--runs={1 if quick else min(runs, question.runs)}")
    with (out / f"{name}.log").open("w") as log:
        done = subprocess.run(
            command,
            cwd=harness.ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=True,
            timeout=LIMIT,
        )
    path = out / f"{name}.json"
    path.write_text(done.stdout)
    return harness.last_result(path)


def ask_all(names: list[str], *, quick: bool, runs: int, out: Path) -> tuple[dict[str, Any], list[str]]:
    """The results by question, and what failed."""
    results: dict[str, Any] = {}
    failures = []
    for name in names:
        began = time.monotonic()
        print(f"--- {name}", file=sys.stderr)
        try:
            results[name] = ask(name, quick=quick, runs=runs, out=out)
        except (subprocess.SubprocessError, IndexError, ValueError) as error:
            failures.append(f"{name}: {error}; see {out / name}.log")
        print(f"--- {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return results, failures + tables.failed_runs(results)


def known(out: Path) -> dict[str, Any]:
    """What was answered so far, now or before."""
    return {
        name: harness.last_result(out / f"{name}.json")
        for name in QUESTIONS
        if (out / f"{name}.json").exists()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers, one run each; writes no README")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join(QUESTIONS), help="some questions, with commas")
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    out: Path = options.out.absolute() / "quick" if options.quick else options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    results, failures = ask_all(names, quick=options.quick, runs=options.runs, out=out)
    print(tables.text(results))
    if not options.quick:
        README.write_text(tables.filled(README.read_text(), known(out)))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
