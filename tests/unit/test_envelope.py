import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync.envelope import (
    Envelope,
    accepted_now,
    check_id,
    derived_id,
    from_wire,
    is_json,
    new_id,
    to_wire,
    utcnow,
)
from eventdriven_sync.errors import InvalidEnvelope, InvalidEventId

PARENT = "65f0000000000000000000aa"


def envelope(**fields: Any) -> Envelope:
    known: dict[str, Any] = {
        "id": "e1",
        "name": "User.x",
        "version": 1,
        "data": {"a": 1, "b": [1.0, "é"]},
        "published_at": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "operation_id": "o1",
    }
    return Envelope(**(known | fields))


def test_events_held_back_for_long_keep_their_order_within_the_last_second() -> None:
    now = utcnow()
    held = [envelope(published_at=now - timedelta(seconds=ago)) for ago in (500, 499, 250, 1, 0)]
    times = [each.published_at for each in accepted_now(held, utcnow())]
    assert times == sorted(times)
    assert len(set(times)) == 5
    assert now - timedelta(seconds=1) <= times[0] < times[-1] <= utcnow()
    assert all(moment.microsecond % 1000 == 0 for moment in times)


def test_events_held_back_for_a_moment_keep_their_time() -> None:
    held = [envelope(published_at=utcnow() - timedelta(seconds=0.5)), envelope(published_at=utcnow())]
    assert accepted_now(held, utcnow()) == tuple(held)
    assert accepted_now([], utcnow()) == ()


def test_new_ids_look_like_object_ids_and_differ() -> None:
    ids = {new_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(re.fullmatch("[0-9a-f]{24}", found) for found in ids)
    age = datetime.now(UTC).timestamp() - int(new_id()[:8], 16)
    assert 0 <= age < 60


def test_a_forked_child_makes_other_ids_than_its_parent() -> None:
    new_id()
    ids = [read_from_child(new_id) for _ in range(3)] + [new_id()]
    assert len({made[8:] for made in ids}) == 4


def read_from_child(make: Callable[[], str]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, make().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as file:
        return file.read()


def test_a_derived_id_depends_on_every_part_and_keeps_the_time_of_its_parent() -> None:
    first = derived_id(PARENT, "Blog.update", "1", at=PARENT)
    assert first == derived_id(PARENT, "Blog.update", "1", at=PARENT)
    assert first.startswith(PARENT[:8])
    assert re.fullmatch("[0-9a-f]{24}", first)
    others = [(PARENT, "Blog.update", "2"), (PARENT, "Blog.updat", "e1"), ("Blog.update", PARENT, "1")]
    assert first not in {derived_id(*parts, at=PARENT) for parts in others}


@pytest.mark.parametrize("at", ["", "custom-id", "65F0000000000000000000AA"])
def test_an_id_derived_at_no_time_still_has_24_hex_digits(at: str) -> None:
    assert re.fullmatch("[0-9a-f]{24}", derived_id("key", "lone \ud800 surrogate", at=at))


@pytest.mark.parametrize("value", ["a", "0", "A.b_c-d:e", "x" * 64, PARENT])
def test_a_good_id_is_returned(value: str) -> None:
    assert check_id(value) == value


def test_an_object_id_is_taken_as_its_text() -> None:
    from bson import ObjectId

    assert check_id(ObjectId(PARENT)) == PARENT


@pytest.mark.parametrize(
    "value", ["", " a", "a b", "-a", ".a", "a\n", "é", "x" * 65, None, 5, b"a", "a/b", "a*"]
)
def test_a_bad_id_is_refused_with_field_and_cure(value: object) -> None:
    with pytest.raises(
        InvalidEventId, match=r"parent_id .* cannot be used: use 1 to 64 characters"
    ) as caught:
        check_id(value, field="parent_id")
    assert (caught.value.field, caught.value.value) == ("parent_id", value)


def test_the_content_hash_tells_other_content_and_nothing_else() -> None:
    one = envelope()
    assert one.content_hash() == envelope(id="e2", depth=5, source="Blog").content_hash()
    assert one.content_hash() == envelope(data={"b": [1.0, "é"], "a": 1}).content_hash()
    others = [envelope(name="User.y"), envelope(version=2), envelope(data={"a": 2, "b": [1.0, "é"]})]
    assert one.content_hash() not in {other.content_hash() for other in others}


def test_an_envelope_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        envelope().id = "x"  # type: ignore[misc]


def test_now_is_aware_and_cut_to_milliseconds() -> None:
    now = utcnow()
    assert now.tzinfo is UTC
    assert now.microsecond % 1000 == 0


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("", "/shop"),
        ("Blog", "/shop/Blog"),
        ("Blog.update", "/shop/Blog/update"),
        ("https://x/y", "https://x/y"),
    ],
)
def test_a_source_is_written_as_a_uri_and_read_back(source: str, uri: str) -> None:
    document = to_wire(envelope(source=source), "shop")
    assert document["source"] == uri
    assert from_wire(document, namespace="shop").source == source


@pytest.mark.parametrize("uri", ["/other/Blog/update", "/shop/a/b/c", "urn:x", "//host/path"])
def test_a_foreign_source_stays_as_it_came(uri: str) -> None:
    document = to_wire(envelope(), "shop") | {"source": uri}
    assert from_wire(document, namespace="shop").source == uri


def test_only_trace_headers_travel_with_the_event() -> None:
    document = to_wire(envelope(trace={"traceparent": "00-1-2-01", "id": "evil"}), "shop")
    assert document["id"] == "e1"
    assert from_wire(document).trace == {"traceparent": "00-1-2-01"}


def test_extension_attributes_are_named_as_cloudevents_demands() -> None:
    full = envelope(parent_ids=("p",), key="k", trace={"traceparent": "t", "tracestate": "s", "baggage": "b"})
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in to_wire(full, "shop"))


def test_an_event_that_names_itself_as_parent_is_refused() -> None:
    with pytest.raises(InvalidEnvelope, match="e1 is its own parent"):
        from_wire(to_wire(envelope(parent_ids=("p", "e1")), "shop"))


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/cloudevents+json", True),
        ("text/plain", False),
        ("application/jsonx", False),
        (None, False),
    ],
)
def test_json_is_recognised_by_its_media_type(content_type: object, expected: bool) -> None:
    assert is_json(content_type) is expected
