"""Two results of one benchmark: the ratio of every median, second to first.

``python -m benchmarks.compare before.json after.json``
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import harness

Medians = dict[str, dict[str, float]]


def ratios(before: Medians, after: Medians) -> list[tuple[str, str, float, float, float]]:
    """Contender, figure, both values and the ratio, for what both have."""
    return [
        (name, figure, value, after[name][figure], after[name][figure] / value)
        for name, figures in before.items()
        for figure, value in figures.items()
        if value and figure in after.get(name, {})
    ]


def main() -> None:
    first, second = (harness.last_result(Path(path)) for path in sys.argv[1:3])
    if first["question"] != second["question"]:
        raise SystemExit(f"{first['question']} and {second['question']} are two questions")
    for name, figure, before, after, ratio in ratios(first["medians"], second["medians"]):
        print(f"{name}  {figure}  {before:,.1f} → {after:,.1f}  ×{ratio:.2f}")


if __name__ == "__main__":
    main()
