"""What every ``AuditTrail`` promises, on memory and MongoDB."""

from typing import Any

import attrs
import pytest

from eventdriven_sync.envelope import new_id
from eventdriven_sync.figures import AuditEntry, AuditQuery, AuditTrail
from tests.contracts.samples import Samples
from tests.contracts.stages import StoreStage


@pytest.fixture
def trail(stage: StoreStage) -> AuditTrail:
    return stage.store.trail


def entry(given: Samples, **changes: Any) -> AuditEntry:
    made = AuditEntry(
        id=new_id(),
        who=f"ada-{given.tag}",
        ip="127.0.0.1",
        action=f"retry-{given.tag}",
        ids=(f"{given.handler}:1",),
        before={"state": "dead", "$set": {"a.b": 2**40}},
        after={"state": "retrying"},
        reason="$$NOW mail works again",
    )
    return attrs.evolve(made, **changes)


def test_an_entry_is_kept_as_it_was_with_the_time_of_the_store(
    stage: StoreStage, trail: AuditTrail, given: Samples
) -> None:
    made = entry(given)
    before = stage.store.directory.now()
    trail.record(made)
    [found] = trail.find(AuditQuery(who=made.who))
    assert found == attrs.evolve(made, at=found.at)
    assert found.at is not None
    assert before <= found.at <= stage.store.directory.now()


def test_an_entry_recorded_again_stays_as_it_was(
    stage: StoreStage, trail: AuditTrail, given: Samples
) -> None:
    made = entry(given)
    trail.record(made)
    [first] = trail.find(AuditQuery(who=made.who))
    stage.pass_time(0.01)
    trail.record(attrs.evolve(made, action="nothing", who=made.who))
    assert trail.find(AuditQuery(who=made.who)) == [first]


def test_entries_are_found_by_person_action_and_record_newest_first(
    stage: StoreStage, trail: AuditTrail, given: Samples
) -> None:
    eve, discard, other = f"eve-{given.tag}", f"discard-{given.tag}", f"{given.handler}:2"
    entries = [
        entry(given),
        entry(given, action=discard, ids=("x", other)),
        entry(given, who=eve),
        entry(given, ids=(other,)),
    ]
    for each in entries:
        trail.record(each)
        stage.pass_time(0.002)
    ids = [each.id for each in entries]

    def found(**query: Any) -> list[int]:
        return [ids.index(each.id) for each in trail.find(AuditQuery(**query))]

    assert found(who=entries[0].who) == [3, 1, 0]
    assert found(who=eve) == [2]
    assert found(action=discard) == [1]
    assert found(touched=other) == [3, 1]
    assert found(who=entries[0].who, action=entries[0].action) == [3, 0]
    times = {each.id: each.at for each in trail.find(AuditQuery(who=entries[0].who))}
    assert found(who=entries[0].who, since=times[ids[1]]) == [3, 1]
    assert found(who=entries[0].who, until=times[ids[1]]) == [0]


def test_pages_of_entries_hold_each_of_them_once(trail: AuditTrail, given: Samples) -> None:
    made = [entry(given) for _ in range(7)]
    for each in made:
        trail.record(each)
    seen: list[str] = []
    while page := trail.find(AuditQuery(who=made[0].who, limit=2, after=seen[-1] if seen else None)):
        assert len(page) <= 2
        seen += [each.id for each in page]
    assert sorted(seen) == sorted(each.id for each in made)
    assert trail.find(AuditQuery(who=made[0].who, after="unknown")) == []


def test_of_many_records_the_first_hundred_are_named(trail: AuditTrail, given: Samples) -> None:
    made = entry(given, ids=tuple(str(number) for number in range(150)))
    trail.record(made)
    [found] = trail.find(AuditQuery(who=made.who))
    assert found.ids == tuple(str(number) for number in range(100))
