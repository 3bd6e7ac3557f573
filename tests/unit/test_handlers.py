"""Registering handlers: what is accepted, and what is refused with the fact it names."""

from datetime import UTC, datetime
from typing import Any

import pytest

from eventdriven_sync import EventBus, RetryPolicy
from eventdriven_sync.errors import (
    DuplicateEvent,
    DuplicateHandler,
    EventDrivenError,
    InvalidEventType,
    InvalidGroupName,
    InvalidHandler,
    InvalidOption,
)
from eventdriven_sync.events import event
from eventdriven_sync.store import NEW
from tests.unit.rig import Greeted, Renamed


@pytest.fixture
def bus() -> EventBus:
    return EventBus(nats="memory://", mongo="memory://", namespace="unit")


def handle(event: Any) -> None: ...


async def asynchronous(event: Any) -> None: ...


def no_parameter() -> None: ...


def two_parameters(event: Any, session: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "error", "fact"),
    [
        ({"function": asynchronous}, InvalidHandler, "async def"),
        ({"function": no_parameter}, InvalidHandler, r"\(event\)"),
        ({"function": two_parameters}, InvalidHandler, "transactional=True"),
        ({"function": handle, "transactional": True}, InvalidHandler, r"\(event, session\)"),
        ({"function": lambda e: None}, InvalidGroupName, "<lambda>"),
        ({"function": 5, "name": "five"}, InvalidHandler, "decorate a function"),
        ({"name": ""}, InvalidGroupName, "handler name ''"),
        ({"name": "a.b"}, InvalidGroupName, r"a\.b"),
        ({"name": "a__b"}, InvalidGroupName, "a__b"),
        ({"name": "x" * 65}, InvalidGroupName, "64"),
        ({"timeout": 0}, InvalidOption, "timeout is 0"),
        ({"timeout": -1}, InvalidOption, "timeout"),
        ({"timeout": float("nan")}, InvalidOption, "timeout"),
        ({"timeout": "5"}, InvalidOption, "timeout"),
        ({"threads": 0}, InvalidOption, "threads"),
        ({"threads": 1.5}, InvalidOption, "whole number"),
        ({"threads": True}, InvalidOption, "threads"),
        ({"retry": 5}, InvalidOption, "RetryPolicy"),
        ({"start": "never"}, InvalidOption, "start"),
        ({"start": datetime(2026, 1, 1)}, InvalidOption, "aware"),
        ({"events": ()}, InvalidHandler, "no event class"),
        ({"events": (dict,)}, InvalidEventType, "dict is no event"),
        ({"events": ("User.renamed",)}, InvalidEventType, "str is no event"),
    ],
)
def test_a_wrong_handler_is_refused(
    bus: EventBus, options: dict[str, Any], error: type[EventDrivenError], fact: str
) -> None:
    given = dict(options)
    function, events = given.pop("function", handle), given.pop("events", (Renamed,))
    with pytest.raises(error, match=fact):
        bus.group("Blog").handler(*events, **given)(function)
    assert bus.handlers == {}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_size": 0}, "max_size"),
        ({"max_size": 10_001}, "max_size"),
        ({"max_size": 2.5}, "max_size"),
        ({"max_wait": 0}, "max_wait"),
        ({"max_wait": 3601}, "max_wait"),
        ({"group_by": "name"}, "group_by"),
    ],
    ids=str,
)
def test_a_wrong_batch_option_is_refused(bus: EventBus, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        bus.group("Blog").batch_handler(Renamed, **options)(handle)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "name", ["", None, 5, "a b", "a.b", "a*", "a>", "a/b", "x" * 65, "a__b", "é", "Blog_"]
)
def test_a_group_name_that_cannot_become_a_consumer_name_is_refused(bus: EventBus, name: Any) -> None:
    with pytest.raises(InvalidGroupName) as caught:
        bus.group(name)
    assert caught.value.field == "group"


def test_two_handlers_never_share_a_consumer(bus: EventBus) -> None:
    bus.group("A").handler(Renamed, name="_b")(handle)
    bus.group("A_B").handler(Renamed, name="b")(handle)
    bus.group("A").handler(Renamed, name="B_b")(handle)
    names = [handler.consumer for handler in bus.handlers.values()]
    assert len(set(names)) == 3


def test_the_decorated_function_stays_what_it_was(bus: EventBus) -> None:
    assert bus.group("Blog").handler(Renamed)(handle) is handle
    assert bus.group("Blog").batch_handler(Renamed, name="other")(handle) is handle


def test_what_a_handler_is_can_be_read(bus: EventBus) -> None:
    policy = RetryPolicy()
    bus.group("Blog").handler(Renamed, Greeted, retry=policy, timeout=None, threads=3, start="all")(handle)
    found = bus.handlers["Blog.handle"]
    assert (found.group, found.consumer, found.threads, found.timeout) == ("Blog", "Blog__handle", 3, None)
    assert (found.retry, found.starts_at) == (policy, None)
    assert ":handle:" in found.location
    assert [kind.name for kind in found.event_types] == ["RigUser.renamed", "RigUser.greeted"]


def test_a_handler_begins_with_new_events_unless_told_otherwise(bus: EventBus) -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    bus.group("Blog").handler(Renamed)(handle)
    bus.group("Blog").handler(Renamed, name="since", start=since)(handle)
    assert [h.starts_at for h in bus.handlers.values()] == [NEW, since]


def test_callables_of_any_kind_serve_as_handlers(bus: EventBus) -> None:
    class Callable:
        def __call__(self, event: Any) -> None: ...

    bus.group("Blog").handler(Renamed, name="object")(Callable().__call__)
    assert "Blog.object" in bus.handlers


def test_a_second_handler_of_the_same_name_is_refused(bus: EventBus) -> None:
    bus.group("Blog").handler(Renamed)(handle)
    with pytest.raises(DuplicateHandler, match=r"Blog\.handle exists already"):
        bus.group("Blog").handler(Greeted)(handle)
    bus.group("Comment").handler(Renamed)(handle)


def test_two_classes_of_one_event_name_are_refused(bus: EventBus) -> None:
    @event("RigUser.renamed")
    class Other:
        name: str

    bus.group("Blog").handler(Renamed)(handle)
    with pytest.raises(DuplicateEvent, match="one class per event name"):
        bus.group("Blog").handler(Other, name="other")(handle)
