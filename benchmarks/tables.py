"""The tables of the README, made from the results of the benchmarks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.harness import FAILED

Results = Mapping[str, Mapping[str, Any]]

NOTHING = "–"
PLACE = re.compile(r"\[([^|\]]+)\|(\w+)\]")
# One row for each contender that was asked. Question, figure, title.
Columns = tuple[tuple[str, str, str], ...]
PUBLISHING: Columns = (
    ("peers_publish", "per_second@1", "1 thread, /s"),
    ("peers_publish", "p50_ms@1", "p50 ms"),
    ("peers_publish", "p99_ms@1", "p99 ms"),
    ("peers_publish", "per_second@8", "8 threads, /s"),
    ("peers_publish", "per_second@32", "32 threads, /s"),
    ("peers_publish", "per_second@many", "1,000 a call, /s"),
    ("peers_publish", "publisher_us@8", "publisher's CPU at 8 threads, µs"),
)
HANDLING: Columns = (
    ("peers_handle", "per_second@1", "1 handler, /s"),
    ("peers_handle", "per_second@3", "3 handlers, /s"),
    ("peers_handle", "worker_us@1", "worker's CPU, µs"),
    ("peers_handle", "worker_mb@1", "worker, MB"),
    ("peers_live", "per_second", "live, /s"),
    ("peers_latency", "p50_ms", "latency at 200/s: p50 ms"),
    ("peers_latency", "p99_ms", "p99 ms"),
    ("peers_latency_half", "p50_ms", "at half of live: p50 ms"),
    ("peers_latency_half", "p99_ms", "p99 ms"),
)
# What this library does alone. Question, what is asked, and the answer: [contender|figure] is a median.
ROWS = (
    *(
        (
            "writes",
            f"one durable write of {size} events by one thread",
            f"[{size} events|p50_ms] ms at p50; CPU of this process [{size} events|own_us] µs, "
            f"of mongod [{size} events|mongod_us] µs",
        )
        for size in (1, 8, 32, 128)
    ),
    (
        "processes",
        "handler of 50 µs of CPU: 1 and 2 worker processes",
        "[1 process|per_second]/s and [2 processes|per_second]/s: ×[2 processes|ratio]",
    ),
    (
        "batches",
        "handled one by one, in batches of 100 and of 500",
        "[one by one|per_second]/s, [batches of 100|per_second]/s, [batches of 500|per_second]/s",
    ),
    (
        "recovery",
        "recovery lane: retries that are due, claimed from MongoDB and handled",
        "[retries that are due|per_second]/s, [retries that are due|cpu_us] µs",
    ),
    (
        "refill",
        "JetStream wiped: events brought back from MongoDB and handled",
        "[wiped stream|per_second]/s",
    ),
    (
        "worker",
        "attempts of a handler that always fails, until their deliveries are dead",
        "[failing to dead letter|per_second]/s",
    ),
    (
        "worker",
        "published from 8 threads and handled in the same process",
        "[live, 8 publishing threads|per_second]/s",
    ),
    (
        "backlog",
        "a backlog of 100,000 is worked off",
        "[drained|per_second]/s, within [drained|seconds] s",
    ),
    (
        "backlog_memory",
        "the worker's memory over 1,000,000 events, at 10 %, 50 %, 100 %",
        "[drained|mb_at_10], [drained|mb_at_50], [drained|mb_at_100] MB",
    ),
    *(
        (
            "growth",
            f"publish_many and handled with {stored} events stored",
            f"[{stored} stored|per_second]/s; µs per event: publisher [{stored} stored|publisher_us], "
            f"worker [{stored} stored|worker_us], mongod [{stored} stored|mongod_us]",
        )
        for stored in ("10,000", "100,000", "1,000,000", "5,000,000")
    ),
    (
        "idle",
        "a worker with 100 handlers and nothing to do",
        "[100 handlers|percent_of_core] % of a core, [100 handlers|worker_mb] MB",
    ),
    (
        "startup",
        "`import eventdriven_sync`; `from eventdriven_sync import EventBus, Worker, event`; without extras",
        "[import|import_ms] ms; [import of names|import_ms] ms",
    ),
    (
        "startup",
        "the same two as whole processes, with the interpreter's own start",
        "[import|process_ms] ms; [import of names|process_ms] ms",
    ),
    (
        "startup",
        "from `EventBus()` to the first receipt, in a new database and in one that is there",
        "[first receipt, new database|ms] ms, [first receipt|ms] ms",
    ),
    (
        "startup",
        "from the start of a worker's process to its first handled event",
        "[first handled event|ms] ms",
    ),
    (
        "flask_overhead",
        "CPU of a POST that publishes nothing: Flask alone, untracked, with its operation stored",
        "[flask|cpu_us], [untracked|cpu_us], [operation|cpu_us] µs",
    ),
)


def peers(results: Results) -> str:
    """Publishing, and handling with latency."""
    parts = {"published": PUBLISHING, "handled": HANDLING}
    return "\n\n".join(contenders(results, title, columns) for title, columns in parts.items())


def contenders(results: Results, title: str, columns: Columns) -> str:
    """A row for each contender; what it was not asked, or failed at, is a dash."""
    asked = [name for name, _, _ in columns if name in results]
    rows = dict.fromkeys(each for name in asked for each in results[name]["medians"])
    lines = [_line([title, *(column for _, _, column in columns)]), "|---|" + "--:|" * len(columns)]
    for row in rows:
        lines.append(_line([row, *(_median(results, name, row, figure) for name, figure, _ in columns)]))
    return "\n".join(lines)


def alone(results: Results) -> str:
    """A row for each question; what has no figure is a dash, and rows without any are left out."""
    lines = [_line(["question", "result"]), "|---|---|"]
    for name, question, answer in ROWS:
        places = PLACE.findall(answer)
        figures = [_median(results, name, contender, figure) for contender, figure in places]
        if any(figure != NOTHING for figure in figures):
            filling = iter(figures)
            lines.append(_line([question, PLACE.sub(lambda _, filling=filling: next(filling), answer)]))
    return "\n".join(lines)


def measured(results: Results) -> str:
    """Where and how often the results were measured, and what failed."""
    if not results:
        return ""
    machines = [result["machine"] for result in results.values()]
    commit, python, cores = (
        ", ".join(sorted({str(machine[key]) for machine in machines}))
        for key in ("commit", "python", "cores")
    )
    most = max(_runs(result) for result in results.values())
    where = f"Medians of up to {most} interleaved runs; commit {commit}, Python {python}, {cores} cores."
    failures = failed_runs(results)
    return f"{where}\n\nFailed: {'; '.join(failures)}." if failures else where


def failed_runs(results: Results) -> list[str]:
    """What failed within the results."""
    return [
        f"{name}: {contender} (failed runs: {figures[FAILED]:.0f})"
        for name, result in results.items()
        for contender, figures in result["medians"].items()
        if FAILED in figures
    ]


def text(results: Results) -> str:
    """Both tables and what there is to say about them."""
    return "\n\n".join([peers(results), alone(results), measured(results)])


def filled(readme: str, results: Results) -> str:
    """The README with the tables between their markers."""
    parts = {"peers": peers(results), "alone": f"{alone(results)}\n\n{measured(results)}"}
    for marker, content in parts.items():
        begin, end = f"<!-- {marker} begin -->", f"<!-- {marker} end -->"
        before, found, rest = readme.partition(begin)
        if not found or end not in rest:
            raise ValueError(f"the README has no {begin} … {end}")
        readme = f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"
    return readme


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _median(results: Results, name: str, contender: str, figure: str) -> str:
    value = results.get(name, {}).get("medians", {}).get(contender, {}).get(figure)
    if value is None:
        return NOTHING
    if value >= 20:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _runs(result: Mapping[str, Any]) -> int:
    return max((len(values) for figures in result["runs"].values() for values in figures.values()), default=0)
