"""The README's tables of the benchmarks, from results that are given."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import everything, harness, tables
from benchmarks.tables import HANDLING, NOTHING, PUBLISHING

MACHINE = {"commit": "abc1234", "python": "3.11.7", "cores": 2, "load": 0.1}


def result(runs: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    return {"machine": MACHINE, "medians": harness.medians(runs), "runs": runs}


RESULTS = {
    "peers_publish": result(
        {
            "ours, stored": {"per_second@1": [900.0, 850.0, 800.0], "p99_ms@1": [1.26]},
            "raw: js.publish": {"per_second@1": [3852.7]},
        }
    ),
    "peers_handle": result(
        {"ours, stored": {"per_second@1": [14_566.0]}, "peer": {harness.FAILED: [1.0, 1.0]}}
    ),
    "processes": result(
        {"1 process": {"per_second": [5577.0]}, "2 processes": {"per_second": [6720.0], "ratio": [1.2]}}
    ),
    "recovery": result({"retries that are due": {"per_second": [1469.8]}}),
    "idle": result({"100 handlers": {harness.FAILED: [1.0]}}),
}


def row(table: str, begin: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {begin} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_contender_has_its_medians_and_a_dash_where_it_was_not_asked() -> None:
    published = tables.contenders(RESULTS, "published", PUBLISHING)
    assert row(published, "ours, stored")[1:4] == ["850", NOTHING, "1.26"]
    assert row(published, "raw: js.publish")[1:] == ["3,853", *[NOTHING] * (len(PUBLISHING) - 1)]
    handled = tables.contenders(RESULTS, "handled", HANDLING)
    assert row(handled, "ours, stored")[1] == "14,566"
    assert set(row(handled, "peer")[1:]) == {NOTHING}
    assert "raw: js.publish" not in handled


def test_a_question_without_any_figure_has_no_row() -> None:
    table = tables.alone(RESULTS)
    assert row(table, "handler of 50 µs of CPU: 1 and 2 worker processes")[1] == "5,577/s and 6,720/s: ×1.20"
    assert "1,470/s, – µs" in table
    assert "100 handlers" not in table


def test_failed_runs_are_told() -> None:
    assert tables.failed_runs(RESULTS) == [
        "peers_handle: peer (failed runs: 2)",
        "idle: 100 handlers (failed runs: 1)",
    ]
    assert "Failed: peers_handle: peer (failed runs: 2)" in tables.text(RESULTS)


def test_no_results_at_all_are_empty_tables() -> None:
    assert [len(part.splitlines()) for part in (*tables.peers({}).split("\n\n"), tables.alone({}))] == [2] * 3


def test_tables_stand_between_their_markers_and_the_rest_stays() -> None:
    readme = "a\n<!-- peers begin -->old<!-- peers end -->\nb\n<!-- alone begin --><!-- alone end -->\nc\n"
    written = tables.filled(readme, RESULTS)
    assert "old" not in written
    assert [written.count(part) for part in ("a\n<!--", "-->\nb\n<!--", "-->\nc\n")] == [1, 1, 1]
    assert written.index("peers begin") < written.index("ours, stored") < written.index("peers end")
    assert written.index("alone begin") < written.index("recovery lane") < written.index("alone end")
    assert "commit abc1234, Python 3.11.7, 2 cores" in written
    assert tables.filled(written, RESULTS) == written


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="peers begin"):
        tables.filled("a", RESULTS)


def test_a_run_that_raises_does_not_keep_others_from_running(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> dict[str, float]:
        raise RuntimeError("no server")

    found = harness.interleaved({"broken": broken, "well": lambda: {"rate": 2.0}}, runs=2)
    assert harness.medians(found) == {"broken": {harness.FAILED: 2.0}, "well": {"rate": 2.0}}
    assert "no server" in capsys.readouterr().err


def test_a_question_that_fails_costs_no_other_its_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ask(name: str, **_: object) -> dict[str, Any]:
        if name == "idle":
            raise subprocess.CalledProcessError(1, "idle")
        return RESULTS[name]

    monkeypatch.setattr(everything, "ask", ask)
    results, failures = everything.ask_all(["idle", "recovery"], quick=True, runs=1, out=tmp_path)
    assert list(results) == ["recovery"]
    assert len(failures) == 1
    assert failures[0].startswith("idle: ")


def test_every_row_and_column_is_of_a_question_that_everything_asks() -> None:
    named = {name for name, _, _ in (*PUBLISHING, *HANDLING, *tables.ROWS)}
    assert named == set(everything.QUESTIONS)
