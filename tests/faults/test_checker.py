"""The judge judged: what was taken away or doubled by hand is found."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mongomock
import pytest

from tests.faults.checker import check
from tests.faults.journal import Journal
from tests.faults.workload import EFFECTS, PLAIN, TRANSACTIONAL, Load

LOAD = Load(events=3)


class History:
    """Three events that everybody handled once, to be falsified."""

    def __init__(self, path: Path) -> None:
        self.journal = Journal(path)
        self.database: Any = mongomock.MongoClient()["app"]
        for event in ("event-0", "event-1", "event-2"):
            self.journal.note("begun", id=event)
            self.journal.note("receipt", id=event, seconds=0.01)
            self.database[EFFECTS].insert_one({"_id": event, "times": 1})
            for handler in LOAD.handlers:
                self.journal.note("start", handler=handler, id=event)
                self.journal.note("done", handler=handler, id=event)
                self.database["deliveries"].insert_one({"_id": f"{handler}:{event}", "state": "succeeded"})

    def set(self, delivery: str, **fields: Any) -> None:
        self.database["deliveries"].update_one({"_id": delivery}, {"$set": fields})


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path / "journal.jsonl")
    yield history
    history.journal.close()


def test_a_run_without_a_fault_is_clean(history: History) -> None:
    verdict = check(history.journal, history.database, LOAD)
    assert (verdict.accepted, verdict.lost, verdict.dup_starts, verdict.dup_effects) == (3, (), 0, 0)
    assert (verdict.doubtful, verdict.dead, verdict.slowest_publish) == (0, {}, 0.01)


def test_an_accepted_event_without_a_delivery_is_lost(history: History) -> None:
    history.database["deliveries"].delete_one({"_id": f"{PLAIN}:event-1"})
    assert check(history.journal, history.database, LOAD).lost == ("Mail.send event-1: no delivery",)


@pytest.mark.parametrize("state", ["pending", "running", "retrying"])
def test_an_accepted_event_that_never_ended_is_lost(history: History, state: str) -> None:
    history.set(f"{PLAIN}:event-1", state=state)
    assert check(history.journal, history.database, LOAD).lost == (f"Mail.send event-1: {state}",)


def test_a_success_that_no_witness_saw_is_lost(history: History) -> None:
    history.journal.note("receipt", id="event-3", seconds=2.0)
    history.database[EFFECTS].insert_one({"_id": "event-3", "times": 1})
    for handler, state in ((TRANSACTIONAL, "succeeded"), (PLAIN, "dead")):
        history.database["deliveries"].insert_one({"_id": f"{handler}:event-3", "state": state})
    assert check(history.journal, history.database, LOAD).lost == (
        "Ledger.book event-3: succeeded, but the witness saw no end",
        "Mail.send event-3: dead, but the witness saw no start",
    )


def test_a_transactional_success_without_its_effect_is_lost(history: History) -> None:
    history.database[EFFECTS].delete_one({"_id": "event-2"})
    assert check(history.journal, history.database, LOAD).lost == (
        "Ledger.book event-2: succeeded without its effect",
    )


def test_effects_that_are_there_twice_or_without_a_success_are_counted(history: History) -> None:
    history.database[EFFECTS].update_one({"_id": "event-0"}, {"$set": {"times": 3}})
    history.set(f"{TRANSACTIONAL}:event-1", state="dead", failed=5)
    verdict = check(history.journal, history.database, LOAD)
    assert verdict.dup_effects == 2 + 1


def test_a_start_that_no_record_accounts_for_is_counted(history: History) -> None:
    history.journal.note("start", handler=PLAIN, id="event-0")
    history.journal.note("start", handler=PLAIN, id="event-1")
    history.set(f"{PLAIN}:event-1", failed=1)
    verdict = check(history.journal, history.database, LOAD)
    assert verdict.dup_starts == 1, "the second start of event-1 is the retry after its failure"
    [told] = verdict.started_again
    assert told.startswith("Mail.send event-0: start ")
    assert told.count("start ") == 2
    assert told.endswith("; stored: {'_id': 'Mail.send:event-0', 'state': 'succeeded'}")


def test_what_was_stored_without_a_receipt_is_in_doubt_and_not_lost(history: History) -> None:
    history.journal.note("begun", id="event-3")
    history.journal.note("begun", id="event-4")
    history.database["deliveries"].insert_one({"_id": f"{PLAIN}:event-3", "state": "pending"})
    verdict = check(history.journal, history.database, LOAD)
    assert (verdict.doubtful, verdict.lost) == (1, ())


def test_the_most_starts_of_a_poisonous_event_are_told(history: History) -> None:
    history.set(f"{PLAIN}:event-2", state="dead", reason="worker_lost", lost=3)
    for _ in range(3):
        history.journal.note("start", handler=PLAIN, id="event-2")
    verdict = check(history.journal, history.database, LOAD)
    assert (verdict.most_lost_starts, verdict.dead) == (4, {"worker_lost": 1})
