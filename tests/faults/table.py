"""Makes docs/reliability.md of the lines that the rows wrote: ``python -m tests.faults.table NEW...``.

New lines take the place of the kept ones of the same row and fault, so a row can be run again by itself.
What is kept is in reliability.jsonl beside this module.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
KEPT = Path(__file__).with_name("reliability.jsonl")
TEMPLATE = Path(__file__).with_name("reliability.template.md")
COLUMNS = ("row", "fault", "events", "lost", "effects twice", "starts twice", "bounds", "seed")
Line = Mapping[str, Any]


def main(files: Sequence[str]) -> int:
    lines = latest(line for file in [KEPT, *map(Path, files)] for line in read(file))
    KEPT.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    PAGE.write_text(page(lines, TEMPLATE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def read(file: Path) -> list[Line]:
    """The lines of one run; none if there is no such file yet."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def latest(lines: Iterable[Line]) -> list[Line]:
    """The last line of every row, in the order of the catalogue; a mix by seed keeps all its seeds."""
    found: dict[tuple[str, ...], Line] = {}
    for line in lines:
        found[line["row"], line["fault"], str(line["seed"]) if line["row"] == "F8" else ""] = line
    return sorted(found.values(), key=_order)


def page(lines: Sequence[Line], template: str) -> str:
    """The template with the table and what was run with what."""
    notes = [f"- **{line['row']}**, {line['fault']}: {line['note']}." for line in lines if line.get("note")]
    return (
        template.replace("{table}", table(lines))
        .replace("{notes}", "\n".join(notes))
        .replace("{run}", _run(lines))
    )


def table(lines: Sequence[Line]) -> str:
    """In Markdown, one line each."""
    head = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    return "\n".join(f"| {text} |" for text in [*head, *map(_cells, lines)])


def _cells(line: Line) -> str:
    bounds = "; ".join(_bound(name, *pair) for name, pair in line["bounds"].items() if name != "dup_starts")
    starts = str(line.get("dup_starts", "–"))
    if "dup_starts" in line["bounds"]:
        starts += f" ≤ {line['bounds']['dup_starts'][1]:g}"
    cells = (
        line["row"],
        line["fault"],
        f"{line['events']:,}" if "events" in line else "–",
        line.get("lost", "–"),
        line.get("dup_effects", "–"),
        starts,
        bounds if line["ok"] else f"**not kept**: {bounds}",
        line["seed"],
    )
    return " | ".join(map(str, cells))


def _bound(name: str, value: float, limit: float) -> str:
    return f"{name.replace('_', ' ')} {value:,g} ≤ {limit:,g}"


def _run(lines: Sequence[Line]) -> str:
    """When and with which versions."""
    dates = sorted({line["date"] for line in lines})
    versions: dict[str, set[str]] = {}
    for line in lines:
        for name, version in line["versions"].items():
            versions.setdefault(name, set()).add(version)
    named = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{len(lines)} rows, {when}: {named}."


def _order(line: Line) -> tuple[int, int, str, str]:
    numbered = re.fullmatch(r"F(\d+)\w*", line["row"])
    return (
        (0, int(numbered[1]), line["row"], line["fault"]) if numbered else (1, 0, line["row"], line["fault"])
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
