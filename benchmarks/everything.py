"""Runs the benchmarks beside the peers and writes their rows into the README.

``python -m benchmarks.everything`` takes an hour or so on a quiet machine; ``--quick`` some minutes, to see
that it all works. One JSON file for each question goes to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import harness

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- peers begin -->", "<!-- peers end -->"
QUESTIONS = {
    "published": ({"events": 20_000}, {"events": 320}),
    "handled": ({"events": 20_000}, {"events": 320}),
    "live": ({"events": 20_000}, {"events": 320}),
    "latency": ({"rate": 200, "seconds": 20}, {"rate": 200, "seconds": 2}),
}
COLUMNS = (
    ("published", "per_second@1", "publish, 1 thread, /s"),
    ("published", "p99_ms@1", "p99 ms"),
    ("published", "per_second@8", "8 threads, /s"),
    ("published", "per_second@32", "32 threads, /s"),
    ("published", "per_second@many", "1,000 a call, /s"),
    ("handled", "per_second@1", "handled, 1 handler, /s"),
    ("handled", "per_second@3", "3 handlers, /s"),
    ("live", "per_second", "live, /s"),
    ("latency", "p50_ms", "latency p50 ms"),
    ("latency", "p99_ms", "p99 ms"),
    ("published", "publisher_us@8", "publisher µs"),
    ("handled", "worker_us@1", "worker µs"),
    ("handled", "worker_mb@1", "worker MB"),
)


def run(question: str, numbers: dict[str, int], runs: int, out: Path) -> dict[str, Any]:
    """One benchmark in a process of its own; its result, also in a file."""
    options = [f"--{key}={value}" for key, value in {"runs": runs, **numbers}.items()]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{question}", *options],
        cwd=harness.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    (out / f"{question}.json").write_text(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """The rows: one peer each."""
    peers = list(next(iter(results.values()))["medians"])
    lines = ["| | " + " | ".join(title for _, _, title in COLUMNS) + " |"]
    lines.append("|---|" + "--:|" * len(COLUMNS))
    for peer in peers:
        cells = [_cell(results[question]["medians"][peer].get(figure)) for question, figure, _ in COLUMNS]
        lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="All questions beside the peers")
    parser.add_argument("--quick", action="store_true", help="small numbers, one run each; writes no README")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = 1 if options.quick else options.runs
    results = {
        question: run(question, small if options.quick else full, runs, options.out)
        for question, (full, small) in QUESTIONS.items()
    }
    machine = results["published"]["machine"]
    text = f"{table(results)}\n\nMedians of {runs}; commit {machine['commit']}, Python {machine['python']}, "
    text += f"{machine['cores']} cores."
    print(text)
    if not options.quick:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
