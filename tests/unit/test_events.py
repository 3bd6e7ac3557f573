from typing import Any

import attrs
import pytest

from eventdriven_sync import event
from eventdriven_sync.errors import InvalidEventType
from eventdriven_sync.events import EventType, check_event_name, declared, event_type_of


def test_a_plain_class_becomes_a_frozen_attrs_class_with_keywords() -> None:
    @event("Events.plain", version=3, key="user_id")
    class Plain:
        user_id: str
        note: str = ""

    value = Plain(user_id="1")
    assert event_type_of(value) == EventType(name="Events.plain", version=3, key="user_id", cls=Plain)
    assert event_type_of(Plain) is declared["Events.plain"]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        value.note = "x"
    with pytest.raises(TypeError):
        Plain("1")


@pytest.mark.parametrize("wrong", ["", "nats", "Broker", None, True])
def test_a_durability_that_is_none_is_refused_with_what_there_is(wrong: Any) -> None:
    with pytest.raises(InvalidEventType, match=r'give "store" .* or "broker"') as caught:
        event("Events.durable", durability=wrong)
    assert (caught.value.field, caught.value.value) == ("durability", wrong)


def test_events_are_stored_unless_their_class_says_otherwise() -> None:
    @event("Events.viewed", durability="broker")
    class Viewed:
        number: int

    @event("Events.stored")
    class Stored:
        number: int

    assert (event_type_of(Viewed).durability, event_type_of(Stored).durability) == ("broker", "store")


def test_an_attrs_class_stays_as_it_is() -> None:
    @attrs.define
    class Own:
        number: int

    assert event("Events.own")(Own) is Own
    assert Own(1) == Own(1)


def test_a_subclass_of_an_event_is_its_own_event_with_its_own_fields() -> None:
    @event("Events.parent")
    class Parent:
        first: int

    @event("Events.child")
    class Child(Parent):
        second: int

    class Undeclared(Parent):
        pass

    assert [field.name for field in attrs.fields(Child)] == ["first", "second"]
    assert event_type_of(Parent).name == "Events.parent"
    assert event_type_of(Child).name == "Events.child"
    with pytest.raises(InvalidEventType, match="Undeclared is no event: declare the class"):
        event_type_of(Undeclared)


def test_the_first_token_names_the_stream() -> None:
    kind = EventType(name="User.name.updated", version=1, key=None, cls=object)
    assert kind.stream_token == "User"


@pytest.mark.parametrize("name", ["a", "User.nameUpdated", "0-_.X", ".".join("abcdefghijklmnop"), "a" * 200])
def test_a_good_name_is_returned(name: str) -> None:
    assert check_event_name(name) == name


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, 2**31])
def test_a_version_is_a_positive_whole_number(version: Any) -> None:
    with pytest.raises(InvalidEventType, match=r"version is .* whole number from 1") as caught:
        event("Events.version", version=version)
    assert caught.value.field == "version"


@pytest.mark.parametrize("key", ["nothing", "", 5, ["a"]])
def test_the_key_is_a_field_of_the_class(key: Any) -> None:
    with pytest.raises(InvalidEventType, match=r"is no field of .*; it has user_id, note") as caught:

        @event("Events.key", key=key)
        class Keyed:
            user_id: str
            note: str

    assert (caught.value.field, caught.value.value) == ("key", key)


@pytest.mark.parametrize("thing", [lambda: None, 5, "text"])
def test_only_a_class_can_be_an_event(thing: Any) -> None:
    with pytest.raises(InvalidEventType, match="is no class"):
        event("Events.thing")(thing)


def test_a_dataclass_is_refused_because_its_defaults_would_be_lost() -> None:
    import dataclasses

    @dataclasses.dataclass
    class Data:
        items: list[int] = dataclasses.field(default_factory=list)

    with pytest.raises(InvalidEventType, match="Data is a dataclass; leave @dataclass out"):
        event("Events.data")(Data)


@pytest.mark.parametrize("value", [5, None, "text", int, object()])
def test_a_value_that_is_no_event_is_refused(value: object) -> None:
    with pytest.raises(InvalidEventType, match="is no event"):
        event_type_of(value)
