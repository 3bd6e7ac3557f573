"""What every store promises of counts and groups, on memory and MongoDB."""

import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from eventdriven_sync.envelope import new_id
from eventdriven_sync.figures import DURATION_BUCKETS_MS, Figures, HandledCount, HourCount, PublishedCount
from eventdriven_sync.outcome import Dead, Done
from eventdriven_sync.store import DeliveryQuery
from eventdriven_sync.stores import mongo_figures
from eventdriven_sync.stores.memory import figures as memory_figures
from tests.contracts.samples import Samples
from tests.contracts.stages import TIMEOUT, StoreStage

MINUTE = timedelta(minutes=1)
BUCKETS = len(DURATION_BUCKETS_MS) + 1


@pytest.fixture
def figures(stage: StoreStage) -> Figures:
    return stage.store.figures


@pytest.fixture
def minute(given: Samples) -> datetime:
    """The begin of a minute in which nobody else has done anything."""
    begin = given.now.replace(second=0, microsecond=0)
    return begin + timedelta(days=random.randint(10, 3000), minutes=random.randint(0, 1439))


def durations(**buckets: int) -> list[int]:
    return [buckets.get(f"b{number}", 0) for number in range(BUCKETS)]


def row(given: Samples, minute: datetime, worker: str, **fields: Any) -> dict[str, Any]:
    counts = {"succeeded": 0, "failed": 0, "dead": 0, "discarded": 0, "durations": durations()}
    about = {"minute": minute, "event_name": given.event_name, "handler": given.handler}
    return {"_id": f"{given.tag}:{minute}:{worker}"} | counts | about | fields


# --- what was published -------------------------------------------------------------------------------


def test_published_events_are_counted_by_minute_name_and_version(
    stage: StoreStage, figures: Figures, given: Samples, minute: datetime
) -> None:
    other = f"Post{given.tag}.published"
    events = [
        given.event(published_at=minute),
        given.event(published_at=minute + timedelta(seconds=59.999)),
        given.event(published_at=minute + timedelta(seconds=30), version=2),
        given.event(published_at=minute + MINUTE, name=other),
        given.event(published_at=minute + 2 * MINUTE),
        given.event(published_at=minute - timedelta(milliseconds=1)),
    ]
    stage.store.events.append(events, timeout=TIMEOUT)
    assert figures.published(since=minute, until=minute + 2 * MINUTE) == [
        PublishedCount(minute=minute, name=given.event_name, version=1, count=2),
        PublishedCount(minute=minute, name=given.event_name, version=2, count=1),
        PublishedCount(minute=minute + MINUTE, name=other, version=1, count=1),
    ]


def test_nothing_was_published_in_a_time_without_events(figures: Figures, minute: datetime) -> None:
    assert figures.published(since=minute, until=minute + MINUTE) == []


def test_the_oldest_event_is_known(stage: StoreStage, figures: Figures, given: Samples) -> None:
    before = figures.oldest_published()
    oldest = min(before or given.now, given.now) - timedelta(days=1)
    stage.store.events.append([given.event(published_at=oldest), given.event()], timeout=TIMEOUT)
    assert figures.oldest_published() == oldest


def test_counts_of_minutes_are_kept_and_replaced(
    stage: StoreStage, figures: Figures, given: Samples, minute: datetime
) -> None:
    until = figures.counted_until()
    begin = max(minute, until or minute)
    first = PublishedCount(minute=begin, name=given.event_name, version=1, count=2)
    last = PublishedCount(minute=begin + 2 * MINUTE, name="Other.event", version=3, count=4)
    figures.save_published([last, first], since=begin, until=begin + 4 * MINUTE)
    assert figures.saved_published(since=begin, until=begin + 3 * MINUTE) == [first, last]
    assert figures.saved_published(since=begin + MINUTE, until=begin + 2 * MINUTE) == []
    assert figures.counted_until() == begin + 4 * MINUTE
    figures.save_published([], since=begin, until=begin + MINUTE)
    figures.save_published([], since=begin, until=begin)
    assert figures.saved_published(since=begin, until=begin + 3 * MINUTE) == [last]


def test_hours_are_kept_and_replaced(figures: Figures, given: Samples, minute: datetime) -> None:
    hour = max(minute.replace(minute=0), (figures.last_hour() or minute.replace(minute=0)) + 60 * MINUTE)
    attempts = HandledCount(minute=hour + MINUTE, succeeded=1, failed=2, dead=3, discarded=4)
    subject = HandledCount(
        event_name=given.event_name,
        handler=given.handler,
        succeeded=1,
        failed=2,
        dead=3,
        discarded=4,
        durations=tuple(durations(b3=10)),
    )
    kept = HourCount(
        hour=hour,
        published=tuple(range(60)),
        attempts=(attempts,),
        names=(PublishedCount(minute=hour, name=given.event_name, version=2, count=7),),
        subjects=(subject,),
    )
    later = HourCount(hour=hour + 60 * MINUTE, published=(0,) * 60, attempts=(), names=(), subjects=())
    for each in (later, later, kept, kept):
        figures.save_hour(each)
    assert figures.hours(since=hour, until=hour + 61 * MINUTE) == [kept, later]
    assert figures.hours(since=hour, until=hour + 60 * MINUTE) == [kept]
    assert figures.hours(since=hour + MINUTE, until=hour + 60 * MINUTE) == []
    assert figures.last_hour() == later.hour


# --- what was handled ---------------------------------------------------------------------------------


def test_attempts_of_all_workers_are_added_up_by_minute(
    stage: StoreStage, figures: Figures, given: Samples, minute: datetime
) -> None:
    stage.store.directory.write_stats(
        [
            row(given, minute + MINUTE, "one", succeeded=5, failed=1),
            row(given, minute, "one", succeeded=2, dead=1),
            row(given, minute, "two", succeeded=3, discarded=4),
            row(given, minute + 2 * MINUTE, "one", succeeded=100),
            row(given, minute - MINUTE, "one", succeeded=100),
        ]
    )
    assert figures.handled_by_minute(since=minute, until=minute + 2 * MINUTE) == [
        HandledCount(minute=minute, succeeded=5, failed=0, dead=1, discarded=4),
        HandledCount(minute=minute + MINUTE, succeeded=5, failed=1, dead=0, discarded=0),
    ]


def test_attempts_are_added_up_by_event_name_and_handler_with_their_durations(
    stage: StoreStage, figures: Figures, given: Samples, minute: datetime
) -> None:
    other = f"{given.group}.other"
    stage.store.directory.write_stats(
        [
            row(given, minute, "one", succeeded=2, durations=durations(b0=1, b14=1)),
            row(given, minute + MINUTE, "one", failed=3, durations=durations(b0=2, b5=1)),
            row(given, minute, "two", handler=other, dead=1, durations=durations(b1=1)),
        ]
    )
    counts = figures.handled_by_subject(since=minute, until=minute + 2 * MINUTE)
    assert sorted(counts, key=lambda count: count.handler) == [
        HandledCount(
            event_name=given.event_name,
            handler=given.handler,
            succeeded=2,
            failed=3,
            dead=0,
            discarded=0,
            durations=tuple(durations(b0=3, b5=1, b14=1)),
        ),
        HandledCount(
            event_name=given.event_name,
            handler=other,
            succeeded=0,
            failed=0,
            dead=1,
            discarded=0,
            durations=tuple(durations(b1=1)),
        ),
    ]


# --- what waits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["pending", "running", "retrying"])
def test_the_oldest_open_delivery_is_known(
    stage: StoreStage, figures: Figures, given: Samples, state: str
) -> None:
    before = figures.oldest_open()
    oldest = (before or given.now) - timedelta(days=1)
    event = given.event()
    if state == "retrying":
        settlement = given.settlement(event, given.outcome(state), started_at=oldest)
        stage.store.deliveries.settle([settlement])
    elif state == "running":
        stage.store.deliveries.start([given.delivery(event, created_at=oldest, token="t")], lease=60)
    else:
        stage.store.deliveries.insert_pending([given.delivery(event, created_at=oldest)])
    assert figures.oldest_open() == oldest


@pytest.mark.parametrize("state", ["succeeded", "dead", "discarded"])
def test_what_is_settled_is_not_open(stage: StoreStage, figures: Figures, given: Samples, state: str) -> None:
    before = figures.oldest_open()
    oldest = (before or given.now) - timedelta(days=1)
    stage.store.deliveries.settle([given.settlement(given.event(), given.outcome(state), started_at=oldest)])
    assert figures.oldest_open() == before


# --- groups of dead letters ---------------------------------------------------------------------------


def dead(given: Samples, seconds: float, message: str, error_type: str = "KeyError", **more: Any) -> Any:
    failure = given.failure(error_type=error_type, message=message)
    outcome = Dead(reason="attempts_exhausted", failure=failure)
    return given.settlement(given.event(), outcome, started_at=given.at(seconds), **more)


def test_dead_letters_of_one_cause_are_one_group(stage: StoreStage, figures: Figures, given: Samples) -> None:
    other = f"{given.group}.other"
    stage.store.deliveries.settle(
        [
            dead(given, -9, "user 41 is unknown"),
            dead(given, -7, "user 43 is unknown"),
            dead(given, -8, "user 42 is unknown"),
            dead(given, 0, "no such table"),
            dead(given, 3, "user 44 is unknown", handler=other),
            dead(given, 4, "user 45 is unknown", error_type="ValueError"),
            given.settlement(given.event(), Done()),
        ]
    )
    groups = figures.letter_groups([given.handler, other])
    shown = [(each.handler, each.error_type, each.message, each.count) for each in groups]
    assert shown[0] == (given.handler, "KeyError", "user 43 is unknown", 3)
    assert sorted(shown[1:]) == [
        (given.handler, "KeyError", "no such table", 1),
        (given.handler, "ValueError", "user 45 is unknown", 1),
        (other, "KeyError", "user 44 is unknown", 1),
    ]
    assert groups[0].first_at == given.at(-9)
    assert groups[0].last_at > given.at(-7)
    assert groups[0] in figures.letter_groups()


def test_groups_hold_the_letters_of_a_time_span(stage: StoreStage, figures: Figures, given: Samples) -> None:
    stage.store.deliveries.settle([dead(given, number, "no such table") for number in range(5)])
    [group] = figures.letter_groups([given.handler], since=given.at(1), until=given.at(3))
    assert (group.count, group.first_at) == (2, given.at(1))
    assert figures.letter_groups([given.handler], since=given.at(10)) == []
    assert figures.letter_groups([]) == []


def test_the_letters_of_a_group_are_found_by_its_fingerprint(
    stage: StoreStage, figures: Figures, given: Samples
) -> None:
    stage.store.deliveries.settle(
        [*[dead(given, n, f"user {n} is unknown") for n in range(3)], dead(given, 9, "no such table")]
    )
    group = figures.letter_groups([given.handler])[0]
    query = DeliveryQuery(states=("dead",), handler=given.handler, fingerprint=group.fingerprint)
    letters = stage.store.deliveries.find(query)
    assert [each.failures[-1].message for each in letters] == [f"user {n} is unknown" for n in (2, 1, 0)]
    assert {each.fingerprint for each in letters} == {group.fingerprint}
    assert stage.store.deliveries.retry_dead(query, by="ada") == 3
    assert [each.message for each in figures.letter_groups([given.handler])] == ["no such table"]


def test_the_last_failure_decides_to_which_group_a_letter_belongs(
    stage: StoreStage, figures: Figures, given: Samples
) -> None:
    event = given.event()
    stage.store.deliveries.settle([given.settlement(event, given.outcome("retrying", after=0))])
    [claimed] = stage.store.deliveries.claim_due([given.handler], limit=1, lease=60, worker="w", token="c")
    last = Dead(reason="rejected", failure=given.failure(error_type="ValueError", message="too late"))
    settlement = given.settlement(event, last, token="c", claimed=True)
    assert stage.store.deliveries.settle([settlement]) == [True]
    [group] = figures.letter_groups([given.handler])
    assert (group.error_type, group.message) == ("ValueError", "too late")
    assert len(claimed.failures) == 1


def test_brief_deliveries_come_without_stacks(stage: StoreStage, given: Samples) -> None:
    stage.store.deliveries.settle([dead(given, 0, "no such table")])
    query = DeliveryQuery(handler=given.handler)
    [whole] = stage.store.deliveries.find(query)
    [brief] = stage.store.deliveries.find(DeliveryQuery(handler=given.handler, brief=True))
    assert whole.failures[0].traceback
    assert brief.failures[0].traceback == ""
    assert brief.failures[0].message == "no such table"
    assert brief.id == whole.id


# --- chains -------------------------------------------------------------------------------------------


def test_the_newest_events_of_a_name_come_with_their_chains(
    stage: StoreStage, figures: Figures, given: Samples
) -> None:
    roots = [given.event(published_at=given.at(n), operation_id=new_id()) for n in range(3)]
    answers = [
        given.event(
            name=f"Answer{given.tag}.made",
            parent_ids=(root.id,),
            source=given.handler,
            operation_id=root.operation_id,
        )
        for root in roots
    ]
    stage.store.events.append([*roots, *answers], timeout=TIMEOUT)
    retrying = given.settlement(roots[1], given.outcome("retrying"))
    stage.store.deliveries.settle([given.settlement(root, Done()) for root in (roots[0], roots[2])])
    stage.store.deliveries.settle([retrying])
    stage.store.deliveries.insert_pending([given.delivery(answers[2])])
    links = figures.links(given.event_name, since=given.at(0), until=given.at(5), limit=2)
    assert [root.id for root in links.roots] == [roots[2].id, roots[1].id]
    assert {each.id for each in links.events} == {each.id for each in (*roots[1:], *answers[1:])}
    [answer] = [each for each in links.events if each.id == answers[1].id]
    assert (answer.parent_ids, answer.source) == ((roots[1].id,), given.handler)
    found = {
        each.event_id: (each.handler, each.state, each.failed, each.duration_ms) for each in links.deliveries
    }
    assert found == {
        roots[2].id: (given.handler, "succeeded", 0, 12.5),
        roots[1].id: (given.handler, "retrying", 1, 12.5),
        answers[2].id: (given.handler, "pending", 0, None),
    }
    assert not links.truncated
    empty = figures.links(given.event_name, since=given.at(9), until=given.at(10), limit=2)
    assert (empty.roots, empty.events, empty.deliveries) == ((), (), ())


def test_of_very_large_chains_a_part_is_read(
    stage: StoreStage, figures: Figures, given: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.store.events.append([given.event() for _ in range(5)], timeout=TIMEOUT)
    for module in (mongo_figures, memory_figures):
        monkeypatch.setattr(module, "MAX_LINKS", 3)
    links = figures.links(given.event_name, since=given.at(-1), until=given.at(1), limit=2)
    assert (len(links.roots), len(links.events), links.truncated) == (2, 3, True)


def test_of_very_many_groups_the_largest_are_told(
    stage: StoreStage, figures: Figures, given: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["one", "two", "three"]
    stage.store.deliveries.settle(
        [dead(given, n, words[n]) for n in range(3)] + [dead(given, n, words[n]) for n in (1, 2, 2)]
    )
    for module in (mongo_figures, memory_figures):
        monkeypatch.setattr(module, "MAX_GROUPS", 2)
    found = [(each.message, each.count) for each in figures.letter_groups([given.handler])]
    assert found == [("three", 3), ("two", 2)]
