"""What every ``EventStore`` promises, on the memory store and on MongoDB."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from eventdriven_sync.envelope import Envelope, new_id
from eventdriven_sync.errors import EventIdReused, StoreUnavailable
from eventdriven_sync.records import Operation
from eventdriven_sync.store import EventQuery, OperationQuery
from tests.contracts.samples import Samples
from tests.contracts.stages import TIMEOUT, StoreStage

# --- appending ----------------------------------------------------------------------------------------


def test_a_new_event_is_stored_with_everything_it_has(stage: StoreStage, given: Samples) -> None:
    event = given.full_event()
    assert stage.store.events.append([event], timeout=TIMEOUT) == [False]
    assert stage.store.events.get([event.id]) == {event.id: event}


def test_appending_the_same_event_again_is_told_and_stores_nothing(stage: StoreStage, given: Samples) -> None:
    known, new = given.event(), given.event()
    stage.store.events.append([known], timeout=TIMEOUT)
    assert stage.store.events.append([known, new], timeout=TIMEOUT) == [True, False]
    assert len(stage.store.events.find(EventQuery(operation_id=given.operation_id))) == 2


def test_an_event_twice_in_one_call_is_stored_once(stage: StoreStage, given: Samples) -> None:
    event = given.event()
    assert stage.store.events.append([event, event], timeout=TIMEOUT) == [False, True]
    assert len(stage.store.events.find(EventQuery(operation_id=given.operation_id))) == 1


# --- recording ----------------------------------------------------------------------------------------


def test_recorded_events_are_stored_with_everything_they_have(stage: StoreStage, given: Samples) -> None:
    event = given.full_event()
    assert stage.store.events.record([event, given.event()]) == [None, None]
    assert stage.store.events.get([event.id]) == {event.id: event}


def test_recording_what_is_stored_changes_nothing_whatever_it_says(stage: StoreStage, given: Samples) -> None:
    first, fresh = given.event(), given.event()
    stage.store.events.append([first], timeout=TIMEOUT)
    other = attrs.evolve(first, data={"user_id": "43"})
    assert stage.store.events.record([other, fresh, first, fresh]) == [None] * 4
    assert stage.store.events.get([first.id, fresh.id]) == {first.id: first, fresh.id: fresh}


def test_an_appended_event_that_was_recorded_is_a_duplicate(stage: StoreStage, given: Samples) -> None:
    event = given.event()
    stage.store.events.record([event])
    assert stage.store.events.append([event], timeout=TIMEOUT) == [True]


def test_recording_nothing_is_harmless(stage: StoreStage) -> None:
    assert stage.store.events.record([]) == []


def test_recording_without_a_server_is_unavailable(stage: StoreStage, given: Samples) -> None:
    store = stage.unreachable()
    with pytest.raises(StoreUnavailable):
        store.events.record([given.event()])
    store.close()


# --- appending, what is refused -----------------------------------------------------------------------


def test_appending_nothing_is_harmless(stage: StoreStage) -> None:
    assert stage.store.events.append([], timeout=TIMEOUT) == []


@pytest.mark.parametrize("change", [{"data": {"user_id": "43"}}, {"version": 2}, {"name": "Other.name"}])
def test_an_id_with_other_content_is_refused(
    stage: StoreStage, given: Samples, change: dict[str, Any]
) -> None:
    event = given.event()
    stage.store.events.append([event], timeout=TIMEOUT)
    with pytest.raises(EventIdReused, match=event.id):
        stage.store.events.append([attrs.evolve(event, **change)], timeout=TIMEOUT)
    assert stage.store.events.get([event.id]) == {event.id: event}


def test_other_metadata_is_no_other_content_and_the_first_stays(stage: StoreStage, given: Samples) -> None:
    event = given.event()
    again = attrs.evolve(event, published_at=given.at(60), trace={"traceparent": "x"})
    stage.store.events.append([event], timeout=TIMEOUT)
    assert stage.store.events.append([again], timeout=TIMEOUT) == [True]
    assert stage.store.events.get([event.id]) == {event.id: event}


def test_a_derived_event_with_other_content_leaves_the_first(stage: StoreStage, given: Samples) -> None:
    event = given.full_event()
    stage.store.events.append([event], timeout=TIMEOUT)
    stage.store.events.append([attrs.evolve(event, data={"user_id": "43"})], timeout=TIMEOUT)
    assert stage.store.events.get([event.id]) == {event.id: event}


@pytest.mark.parametrize("prefix", ["order-", "Z", "0" * 23 + "g"])
def test_an_event_keeps_the_id_its_publisher_gave(stage: StoreStage, given: Samples, prefix: str) -> None:
    event = given.event(id=f"{prefix}.{given.tag}")
    assert stage.store.events.append([event], timeout=TIMEOUT) == [False]
    assert stage.store.events.append([event], timeout=TIMEOUT) == [True]
    assert stage.store.events.get([event.id]) == {event.id: event}


def test_threads_appending_at_once_each_get_their_own_answer(stage: StoreStage, given: Samples) -> None:
    known = given.event()
    stage.store.events.append([known], timeout=TIMEOUT)
    reused = attrs.evolve(known, data={})
    batches = [[given.event(), known] for _ in range(16)] + [[reused]]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(stage.store.events.append, batch, timeout=TIMEOUT) for batch in batches]
    assert [answer.result() for answer in answers[:-1]] == [[False, True]] * 16
    assert isinstance(answers[-1].exception(), EventIdReused)
    assert stage.store.events.count([given.event_name], since=None) == 17


def test_what_is_stored_cannot_be_changed_from_outside(stage: StoreStage, given: Samples) -> None:
    data = {"tags": ["a"]}
    event = given.event(data=data)
    stage.store.events.append([event], timeout=TIMEOUT)
    data["tags"].append("b")
    stage.store.events.get([event.id])[event.id].data["tags"].append("c")
    stage.store.events.find(EventQuery(names=(given.event_name,)))[0].data["tags"].append("d")
    assert stage.store.events.get([event.id])[event.id].data == {"tags": ["a"]}


# --- reading events -----------------------------------------------------------------------------------


def test_unknown_events_are_left_out(stage: StoreStage, given: Samples) -> None:
    event = given.event()
    stage.store.events.append([event], timeout=TIMEOUT)
    assert set(stage.store.events.get([event.id, new_id(), "never-seen"])) == {event.id}
    assert stage.store.events.get([]) == {}


def _three_events(stage: StoreStage, given: Samples) -> list[Envelope]:
    events = [
        given.event(key="1", source="A.first"),
        given.event(key="2", operation_id=new_id(), published_at=given.at(1)),
        given.event(key="3", name=f"{given.event_name}.deep", published_at=given.at(2)),
    ]
    stage.store.events.append(events, timeout=TIMEOUT)
    return events


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (lambda given, events: {"names": (given.event_name,)}, [1, 0]),
        (lambda given, events: {"names": tuple({event.name for event in events})}, [2, 1, 0]),
        (lambda given, events: {"operation_id": given.operation_id}, [2, 0]),
        (lambda given, events: {"operation_id": new_id()}, []),
        (lambda given, events: {"names": (given.event_name,), "source": "A.first"}, [0]),
        (lambda given, events: {"names": (given.event_name,), "key": "2"}, [1]),
        (lambda given, events: {"names": (given.event_name,), "key": "3"}, []),
        (lambda given, events: {"operation_id": given.operation_id, "since": given.at(2)}, [2]),
        (lambda given, events: {"operation_id": given.operation_id, "until": given.at(2)}, [0]),
        (lambda given, events: {"operation_id": given.operation_id, "limit": 1}, [2]),
        (lambda given, events: {"operation_id": given.operation_id, "oldest_first": True}, [0, 2]),
    ],
)
def test_events_are_found_by(stage: StoreStage, given: Samples, fields: Any, expected: list[int]) -> None:
    events = _three_events(stage, given)
    found = stage.store.events.find(EventQuery(**fields(given, events)))
    assert found == [events[position] for position in expected]


@pytest.mark.parametrize("oldest_first", [False, True])
def test_pages_of_events_hold_each_of_them_once(
    stage: StoreStage, given: Samples, oldest_first: bool
) -> None:
    times = [0, 0, 0, 1, 1, 2, 3]
    stage.store.events.append([given.event(published_at=given.at(each)) for each in times], timeout=TIMEOUT)
    query = EventQuery(operation_id=given.operation_id, oldest_first=oldest_first, limit=2)
    seen: list[Envelope] = []
    while page := stage.store.events.find(attrs.evolve(query, after=seen[-1].id if seen else None)):
        assert len(page) <= 2
        seen += page
    assert len({event.id for event in seen}) == len(seen) == 7
    assert seen == sorted(seen, key=lambda event: event.published_at, reverse=not oldest_first)


@pytest.mark.parametrize(
    ("since", "until", "expected"), [(None, None, 3), (1, None, 2), (0, 2, 2), (3, None, 0)]
)
def test_events_are_counted_by_name_and_time(
    stage: StoreStage, given: Samples, since: float | None, until: float | None, expected: int
) -> None:
    events = [given.event(published_at=given.at(each)) for each in (0, 1, 2)]
    stage.store.events.append([*events, given.event(name="Other.name")], timeout=TIMEOUT)
    count = stage.store.events.count(
        [given.event_name],
        since=None if since is None else given.at(since),
        until=None if until is None else given.at(until),
    )
    assert count == expected


# --- operations ---------------------------------------------------------------------------------------


def test_an_operation_is_kept_with_everything_it_has(stage: StoreStage, given: Samples) -> None:
    operation = given.operation(parent_id=new_id())
    stage.store.events.save_operation(operation, timeout=TIMEOUT)
    assert stage.store.events.operation(operation.id) == operation


def test_saving_an_operation_again_replaces_it(stage: StoreStage, given: Samples) -> None:
    operation = given.operation()
    ended = attrs.evolve(operation, status="failed", error=given.failure(), finished_at=given.at(5))
    for state in (operation, ended, ended):
        stage.store.events.save_operation(state, timeout=TIMEOUT)
    assert stage.store.events.operation(operation.id) == ended


def test_an_unknown_operation_is_none(stage: StoreStage) -> None:
    assert stage.store.events.operation(new_id()) is None


def _three_operations(stage: StoreStage, given: Samples) -> list[Operation]:
    operations = [
        given.operation(),
        given.operation(kind="cron", started_at=given.at(1), status="succeeded"),
        given.operation(user="nobody", name=f"other-{given.tag}", started_at=given.at(2)),
    ]
    for operation in operations:
        stage.store.events.save_operation(operation, timeout=TIMEOUT)
    return operations


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (lambda given: {"name": f"import-{given.tag}"}, [1, 0]),
        (lambda given: {"name": f"import-{given.tag}", "limit": 1}, [1]),
        (lambda given: {"user": f"ada-{given.tag}", "kind": "cron"}, [1]),
        (lambda given: {"user": f"ada-{given.tag}", "status": "running"}, [0]),
        (lambda given: {"name": f"other-{given.tag}", "user": "nobody"}, [2]),
        (lambda given: {"user": f"ada-{given.tag}", "since": given.at(1)}, [1]),
        (lambda given: {"user": f"ada-{given.tag}", "until": given.at(1)}, [0]),
    ],
)
def test_operations_are_found_by(stage: StoreStage, given: Samples, fields: Any, expected: list[int]) -> None:
    operations = _three_operations(stage, given)
    found = stage.store.events.find_operations(OperationQuery(**fields(given)))
    assert found == [operations[position] for position in expected]


def test_pages_of_operations_hold_each_of_them_once(stage: StoreStage, given: Samples) -> None:
    for seconds in (0, 0, 0, 1, 2):
        stage.store.events.save_operation(given.operation(started_at=given.at(seconds)), timeout=TIMEOUT)
    query = OperationQuery(name=f"import-{given.tag}", limit=2)
    seen: list[Operation] = []
    while page := stage.store.events.find_operations(
        attrs.evolve(query, after=seen[-1].id if seen else None)
    ):
        seen += page
    assert len({operation.id for operation in seen}) == len(seen) == 5


# --- looking into payloads ----------------------------------------------------------------------------

PAYLOAD = {
    "user_id": "42",
    "count": 1,
    "ratio": 0.5,
    "urgent": True,
    "empty": "",
    "user": {"address": {"city": "Ulm"}},
    "tags": ["a", "b"],
    "lines": [{"sku": "x", "sizes": [1, 2]}, {"sku": "y"}],
}


@pytest.mark.parametrize(
    "payload",
    [
        {"user_id": "42"},
        {"count": 1},
        {"count": 1.0},
        {"ratio": 0.5},
        {"urgent": True},
        {"empty": ""},
        {"user.address.city": "Ulm"},
        {"tags": "b"},
        {"tags.1": "b"},
        {"lines.sku": "y"},
        {"lines.0.sku": "x"},
        {"lines.sizes": 2},
        {"lines.0.sizes.1": 2},
        {"user_id": "42", "user.address.city": "Ulm"},
    ],
)
def test_events_are_found_by_what_is_in_their_payload(
    stage: StoreStage, given: Samples, payload: dict[str, Any]
) -> None:
    wanted, other = given.event(data=PAYLOAD), given.event(data={"user_id": "7"})
    stage.store.events.append([wanted, other], timeout=TIMEOUT)
    query = EventQuery(names=(given.event_name,), since=given.at(-1), payload=payload)
    assert stage.store.events.find(query) == [wanted]


@pytest.mark.parametrize(
    "payload",
    [
        {"user_id": 42},
        {"user_id": "4"},
        {"count": True},
        {"urgent": 1},
        {"user": "Ulm"},
        {"user.city": "Ulm"},
        {"tags.0": "b"},
        {"lines.1.sku": "x"},
        {"lines.sku.0": "x"},
        {"user_id": "42", "count": 2},
    ],
)
def test_events_with_another_payload_are_not_found(
    stage: StoreStage, given: Samples, payload: dict[str, Any]
) -> None:
    stage.store.events.append([given.event(data=PAYLOAD)], timeout=TIMEOUT)
    query = EventQuery(names=(given.event_name,), since=given.at(-1), payload=payload)
    assert stage.store.events.find(query) == []


@pytest.mark.parametrize("payload", [{"tags": "x"}, {"lines.sku": "x"}])
def test_nested_lists_are_looked_into_once(
    stage: StoreStage, given: Samples, payload: dict[str, Any]
) -> None:
    data = {"tags": [["x"]], "lines": [[{"sku": "x"}]]}
    stage.store.events.append([given.event(data=data)], timeout=TIMEOUT)
    query = EventQuery(names=(given.event_name,), since=given.at(-1), payload=payload)
    assert stage.store.events.find(query) == []


def test_events_are_found_by_key_alone(stage: StoreStage, given: Samples) -> None:
    events = [given.event(key=f"k{given.tag}", published_at=given.at(second)) for second in range(3)]
    stage.store.events.append([*events, given.event(), given.event(key="other")], timeout=TIMEOUT)
    found = stage.store.events.find(EventQuery(key=f"k{given.tag}", limit=2))
    assert found == [events[2], events[1]]
    assert stage.store.events.find(EventQuery(key=f"k{given.tag}", after=found[-1].id)) == [events[0]]
