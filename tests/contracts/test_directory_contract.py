"""What every ``Directory`` promises, on the memory store and on MongoDB."""

from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync.records import HandlerRecord, delivery_id
from eventdriven_sync.store import NEW, Directory
from tests.contracts.samples import Samples
from tests.contracts.stages import TIMEOUT, StoreStage


@pytest.fixture
def directory(stage: StoreStage) -> Directory:
    return stage.store.directory


def known(directory: Directory, given: Samples, *, retired: bool = False) -> list[HandlerRecord]:
    """The handlers of this test."""
    return [each for each in directory.handlers(retired=retired) if given.tag in each.name]


def near(moment: datetime | None, expected: datetime) -> bool:
    return moment is not None and abs((moment - expected).total_seconds()) < 5


# --- handlers -----------------------------------------------------------------------------------------


def test_a_registered_handler_is_known(directory: Directory, given: Samples) -> None:
    record = given.handler_record()
    assert directory.register([record]) == [record]
    assert known(directory, given) == [record]


def test_registering_answers_in_the_order_of_the_records(directory: Directory, given: Samples) -> None:
    records = [given.handler_record(name=f"{given.group}.{name}") for name in ("b", "a", "c")]
    assert directory.register(records) == records
    assert [each.name[-1] for each in known(directory, given)] == ["a", "b", "c"]
    assert directory.register([]) == []


def test_a_new_handler_starts_at_the_servers_time(directory: Directory, given: Samples) -> None:
    [stored] = directory.register([given.handler_record(starts_at=NEW, registered_at=given.at(-900))])
    assert near(stored.starts_at, given.now)
    assert known(directory, given) == [stored]


@pytest.mark.parametrize("first", [None, NEW, "given"])
@pytest.mark.parametrize("again", [None, NEW, "given"])
def test_a_handler_keeps_its_first_start(
    directory: Directory, given: Samples, first: Any, again: Any
) -> None:
    starts = {"given": given.at(-100)}
    record = given.handler_record(starts_at=starts.get(first, first))
    [stored] = directory.register([record])
    other = attrs.evolve(
        record,
        starts_at=given.at(-50) if again == "given" else again,
        registered_at=given.at(60),
        seen_at=given.at(60),
        events=("A.b", "C.d"),
        policy="8 attempts",
        options={},
    )
    [updated] = directory.register([other])
    assert updated == attrs.evolve(other, starts_at=stored.starts_at, registered_at=given.now)
    assert known(directory, given) == [updated]


def test_a_retired_handler_is_shown_only_if_asked_for(directory: Directory, given: Samples) -> None:
    record = given.handler_record()
    directory.register([record, given.handler_record(name=f"{given.group}.other")])
    assert directory.retire(record.name)
    assert [each.name for each in known(directory, given)] == [f"{given.group}.other"]
    both = known(directory, given, retired=True)
    assert [each.name for each in both] == [record.name, f"{given.group}.other"]
    assert near(both[0].retired_at, given.now)


def test_an_unknown_handler_cannot_retire(directory: Directory, given: Samples) -> None:
    assert not directory.retire(given.handler)


def test_a_retired_handler_begins_anew(directory: Directory, given: Samples) -> None:
    record = given.handler_record(starts_at=given.at(-100))
    directory.register([record])
    directory.reconciled([(record, given.at(10))])
    directory.retire(record.name)
    again = attrs.evolve(record, starts_at=NEW, registered_at=given.at(60))
    [stored] = directory.register([again])
    assert (stored.retired_at, stored.reconciled_until) == (None, None)
    assert near(stored.starts_at, given.now)
    assert stored.registered_at == given.at(60)
    assert known(directory, given) == [stored]


def test_the_watermark_advances_and_survives_a_registration(directory: Directory, given: Samples) -> None:
    record = given.handler_record()
    directory.register([record])
    for seconds in (10, 20, 15):
        directory.reconciled([(record, given.at(seconds))])
    [stored] = directory.register([record])
    assert stored.reconciled_until == given.at(20)


def test_watermarks_of_several_handlers_advance_together(directory: Directory, given: Samples) -> None:
    names = [f"{given.handler}_{number}" for number in range(3)]
    one, two, three = directory.register([attrs.evolve(given.handler_record(), name=name) for name in names])
    directory.reconciled([(one, given.at(10)), (two, given.at(20)), (three, given.at(10))])
    directory.reconciled([(one, given.at(5)), (three, given.at(30))])
    directory.reconciled([])
    found = {each.name: each.reconciled_until for each in directory.handlers() if each.name in names}
    assert found == dict(zip(names, (given.at(10), given.at(20), given.at(30)), strict=True))


def test_the_watermark_of_a_handler_that_begins_anew_is_not_moved_by_who_read_it_before(
    directory: Directory, given: Samples
) -> None:
    [before] = directory.register([given.handler_record()])
    directory.retire(before.name)
    directory.register([attrs.evolve(before, starts_at=None, registered_at=given.at(60))])
    directory.reconciled([(before, given.at(50))])
    assert [each.reconciled_until for each in known(directory, given)] == [None]


def test_a_watermark_of_an_unknown_handler_creates_none(directory: Directory, given: Samples) -> None:
    directory.reconciled([(given.handler_record(), given.now)])
    assert known(directory, given, retired=True) == []


# --- leading ------------------------------------------------------------------------------------------


def test_one_holder_leads_a_role(directory: Directory, given: Samples) -> None:
    role = f"reconciler-{given.tag}"
    assert directory.lead(role, "one", ttl=60)
    assert directory.lead(role, "one", ttl=60)
    assert not directory.lead(role, "two", ttl=60)
    assert directory.lead(f"{role}-other", "two", ttl=60)


def test_a_lease_on_a_role_runs_out(stage: StoreStage, directory: Directory, given: Samples) -> None:
    role = f"reconciler-{given.tag}"
    assert directory.lead(role, "one", ttl=0.1)
    stage.pass_time(0.11)
    assert directory.lead(role, "two", ttl=60)
    assert not directory.lead(role, "one", ttl=60)


def test_who_resigns_makes_room_at_once(directory: Directory, given: Samples) -> None:
    role = f"reconciler-{given.tag}"
    directory.lead(role, "one", ttl=60)
    directory.resign(role, "two")
    assert not directory.lead(role, "two", ttl=60)
    directory.resign(role, "one")
    directory.resign(role, "one")
    assert directory.lead(role, "two", ttl=60)


# --- workers, statistics and the clock ----------------------------------------------------------------


def test_a_worker_lives_until_it_stops(directory: Directory, given: Samples) -> None:
    worker = given.worker()
    directory.heartbeat(worker)
    busy = attrs.evolve(worker, running=(f"{given.handler}:1",))
    directory.heartbeat(busy)
    [found] = [each for each in directory.workers() if each.id == worker.id]
    assert found == attrs.evolve(busy, seen_at=found.seen_at)
    assert near(found.seen_at, given.now)
    for _ in range(2):
        directory.forget_worker(worker.id)
    assert [each for each in directory.workers() if each.id == worker.id] == []


def test_statistics_are_replaced_by_id(directory: Directory, given: Samples) -> None:
    minute = given.now.replace(second=0, microsecond=0)
    old = {"_id": f"{given.tag}:1", "minute": minute - timedelta(minutes=5), "failed": 1, "durations": [1, 0]}
    new = {"_id": f"{given.tag}:2", "minute": minute, "failed": 0, "durations": [0, 7]}
    directory.write_stats([old, new])
    directory.write_stats([new | {"failed": 3}, old])
    directory.write_stats([])
    assert _stats(directory, given, minute) == [new | {"failed": 3}]
    both = _stats(directory, given, minute - timedelta(minutes=5))
    assert sorted(both, key=lambda each: each["_id"]) == [old, new | {"failed": 3}]


def test_the_estimated_clock_is_never_behind_the_servers(directory: Directory) -> None:
    for _ in range(20):
        read = directory.now()
        estimated = directory.estimated_now()
        assert read <= estimated <= directory.now() + timedelta(seconds=2)
    assert estimated.microsecond % 1000 == 0, "as MongoDB keeps it"


def test_the_servers_clock_is_utc(directory: Directory) -> None:
    now = directory.now()
    assert now.utcoffset() == timedelta(0)
    assert directory.now() >= now


def _stats(directory: Directory, given: Samples, since: datetime) -> list[dict[str, Any]]:
    return [each for each in directory.stats(since=since) if each["_id"].startswith(given.tag)]


def test_a_handler_is_paused_and_resumed(directory: Directory, given: Samples) -> None:
    directory.register([given.handler_record()])
    assert directory.pause(given.handler, by="$ada", reason="$$NOW mail is down")
    [paused] = [each.paused for each in directory.handlers() if each.name == given.handler]
    assert paused is not None
    assert (paused.by, paused.reason) == ("$ada", "$$NOW mail is down")
    assert near(paused.at, given.now)
    [registered] = directory.register([given.handler_record(events=("Other.event",))])
    assert registered.paused == paused
    assert directory.resume(given.handler)
    assert directory.resume(given.handler)
    assert [each.paused for each in directory.handlers() if each.name == given.handler] == [None]


def test_an_unknown_handler_is_not_paused(directory: Directory, given: Samples) -> None:
    assert not directory.pause("Nobody.none", by="ada", reason="")
    assert not directory.resume("Nobody.none")
    assert "Nobody.none" not in [each.name for each in directory.handlers(retired=True)]


def test_a_handler_that_begins_anew_is_not_paused(directory: Directory, given: Samples) -> None:
    directory.register([given.handler_record()])
    directory.pause(given.handler, by="ada", reason="")
    directory.retire(given.handler)
    [again] = directory.register([given.handler_record()])
    assert again.paused is None


# --- tidying up ---------------------------------------------------------------------------------------


def test_what_a_probe_left_is_erased_and_nothing_else(stage: StoreStage, given: Samples) -> None:
    store, other = stage.store, f"{given.group}.other"
    store.directory.register([given.handler_record(), given.handler_record(name=other)])
    probe, text_id, kept = given.event(), given.event(id=f"probe-{given.tag}"), given.event()
    store.events.append([probe, text_id, kept], timeout=TIMEOUT)
    for event in (probe, text_id, kept):
        store.deliveries.settle([given.settlement(event, given.outcome("succeeded"))])
    minute = given.now.replace(second=0, microsecond=0)
    rows = [
        {"_id": f"{given.tag}-{name}", "minute": minute, "handler": name, "succeeded": 1}
        for name in (given.handler, other)
    ]
    store.directory.write_stats(rows)

    for _ in range(2):
        store.erase(given.handler, [probe.id, text_id.id])

    assert list(store.events.get([probe.id, text_id.id, kept.id])) == [kept.id]
    keys = [delivery_id(given.handler, event.id) for event in (probe, text_id, kept)]
    assert store.deliveries.states(keys) == {keys[2]: "succeeded"}
    assert [each.name for each in known(store.directory, given, retired=True)] == [other]
    left = [row for row in store.directory.stats(since=minute) if str(row["_id"]).startswith(given.tag)]
    assert [row["handler"] for row in left] == [other]
