"""Bad input that is refused before anything is stored or sent: the exact error and the fact it names.

What arrives from the broker is in ``test_codec.py``; what needs a bus is tested with the bus.
"""

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import attrs
import pytest

from eventdriven_sync import Retry, RetryPolicy, event
from eventdriven_sync.codec import Codec
from eventdriven_sync.config import Settings, check_name
from eventdriven_sync.envelope import Envelope, check_id, from_wire, to_wire
from eventdriven_sync.errors import (
    ConfigurationError,
    EventDrivenError,
    InvalidDelay,
    InvalidEnvelope,
    InvalidEventId,
    InvalidEventType,
    InvalidGroupName,
    InvalidOption,
    PayloadInvalid,
    PayloadNotSerializable,
    PayloadTooDeep,
    PayloadTooLarge,
)


@event("BadInput.happened")
@attrs.frozen(kw_only=True)
class Happened:
    payload: Any = None
    number: int = 0
    at: datetime | None = None
    price: Decimal = Decimal(1)


def publish(**fields: Any) -> Callable[[], object]:
    return lambda: Codec().encode(Happened(**fields))


def name(value: Any) -> Callable[[], object]:
    return lambda: event(value)


def setting(**fields: Any) -> Callable[[], object]:
    return lambda: Settings(**fields)


def group(value: Any) -> Callable[[], object]:
    return lambda: check_name(value, what="group")


def delay(value: Any) -> Callable[[], object]:
    return lambda: Retry(after=value)


def an_id(value: Any) -> Callable[[], object]:
    return lambda: check_id(value)


def envelope(**fields: Any) -> Envelope:
    known: dict[str, Any] = {
        "id": "e1",
        "name": "User.x",
        "version": 1,
        "data": {},
        "published_at": datetime(2026, 1, 1, tzinfo=UTC),
        "operation_id": "o1",
    }
    return Envelope(**(known | fields))


def send(size: int) -> Callable[[], object]:
    return lambda: Codec().pack(envelope(data={"a": "x" * size}), "shop")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


ALLOWED = "allowed: A-Z a-z 0-9 _ - and '.' between tokens"
Row = tuple[str, Callable[[], object], type[EventDrivenError], str]

NAMES: list[Row] = [
    ("empty name", name(""), InvalidEventType, "event type must be a non-empty string, got ''"),
    ("name None", name(None), InvalidEventType, "event type must be a non-empty string, got None"),
    ("name is a class", name(Happened), InvalidEventType, "must be a non-empty string, got <class"),
    ("space", name("User name"), InvalidEventType, f"contains ' ' at position 4; {ALLOWED}"),
    ("tab", name("User\t"), InvalidEventType, "contains '\\t' at position 4"),
    ("CR", name("a\rb"), InvalidEventType, "contains '\\r' at position 1"),
    ("LF at the end", name("User.x\n"), InvalidEventType, "contains '\\n' at position 6"),
    ("NUL", name("\0a"), InvalidEventType, "contains '\\x00' at position 0"),
    ("star", name("User.*"), InvalidEventType, "contains the wildcard '*' at position 5"),
    ("greater", name("User.>"), InvalidEventType, "contains the wildcard '>' at position 5"),
    ("double dot", name("a..b"), InvalidEventType, "'a..b' has an empty token"),
    ("dot first", name(".a"), InvalidEventType, "'.a' has an empty token"),
    ("dot last", name("a."), InvalidEventType, "'a.' has an empty token"),
    ("only a dot", name("."), InvalidEventType, "'.' has an empty token"),
    ("JetStream API", name("$JS.API.STREAM.DELETE.x"), InvalidEventType, "contains '$' at position 0"),
    ("system", name("$SYS.REQ"), InvalidEventType, "contains '$' at position 0"),
    ("inbox", name("_INBOX.abc"), InvalidEventType, "begins with _INBOX"),
    ("long name", name("a" * 4_000), InvalidEventType, "4,000 characters, limit 200"),
    ("17 tokens", name(".".join("a" * 17)), InvalidEventType, "17 tokens, limit 16"),
    ("not ASCII", name("p9.é"), InvalidEventType, "contains 'é' at position 3"),
    ("wide digits", name("User.１"), InvalidEventType, "contains '１' at position 5"),
]

PAYLOADS: list[Row] = [
    ("too large", send(300_000), PayloadTooLarge, "bytes encoded (headers included), limit 262,144"),
    ("too large with headers", send(262_144 - 1_200), PayloadTooLarge, "publish a reference to it"),
    (
        "Decimal in Any",
        publish(payload={"items": [1, 2, 3, Decimal(1)]}),
        PayloadNotSerializable,
        "payload['items'][3] is Decimal",
    ),
    ("set in Any", publish(payload={1}), PayloadNotSerializable, "payload is set"),
    ("object in Any", publish(payload=[object()]), PayloadNotSerializable, "payload[0] is object"),
    ("date in Any", publish(payload=date(2026, 1, 1)), PayloadNotSerializable, "payload is date"),
    ("NaN", publish(payload=[math.nan]), PayloadNotSerializable, "payload[0] is nan"),
    ("Infinity", publish(payload={"x": -math.inf}), PayloadNotSerializable, "payload['x'] is -inf"),
    ("Decimal NaN", publish(price=Decimal("NaN")), PayloadNotSerializable, "price is Decimal NaN"),
    ("Decimal sNaN", publish(price=Decimal("sNaN")), PayloadNotSerializable, "price is Decimal sNaN"),
    (
        "long int",
        publish(payload={"n": 2**70}),
        PayloadNotSerializable,
        "payload['n'] needs 71 bits and a sign; MongoDB stores 64",
    ),
    ("long int in a field", publish(number=2**63), PayloadNotSerializable, "number needs 64 bits and a sign"),
    ("5,000 digits", publish(number=10**5_000), PayloadNotSerializable, "number needs 16610 bits"),
    (
        "lone surrogate",
        publish(payload={"a": "x\ud800"}),
        PayloadNotSerializable,
        "payload['a'] has the lone surrogate '\\ud800' at position 1",
    ),
    (
        "NUL in a key",
        publish(payload={"a\0b": 1}),
        PayloadNotSerializable,
        "payload key 'a\\x00b' contains NUL",
    ),
    (
        "key that is no text",
        publish(payload={1: 1}),
        PayloadNotSerializable,
        "payload key is int 1: keys must be str",
    ),
    ("181 levels", publish(payload=nested(180)), PayloadTooDeep, "depth 181, limit 100"),
    ("naive datetime", publish(at=datetime(2026, 1, 1)), PayloadInvalid, "use an aware datetime"),
    ("text for an int", publish(number="3"), PayloadInvalid, "number: expected int, got str '3'"),
]

IDS_AND_DELAYS: list[Row] = [
    (
        "id with a space",
        an_id("a b"),
        InvalidEventId,
        "event_id 'a b' cannot be used: use 1 to 64 characters",
    ),
    ("id with NUL", an_id("a\0"), InvalidEventId, "event_id 'a\\x00' cannot be used"),
    ("empty id", an_id(""), InvalidEventId, "event_id '' cannot be used"),
    ("65 characters", an_id("a" * 65), InvalidEventId, "cannot be used"),
    ("id that is no text", an_id(5), InvalidEventId, "event_id 5 cannot be used"),
    (
        "its own parent",
        lambda: from_wire(to_wire(envelope(parent_ids=("e1",)), "s")),
        InvalidEnvelope,
        "e1 is its own parent",
    ),
    ("negative delay", delay(-1), InvalidDelay, "after is -1: give seconds from 0 to 31,536,000 (365 days)"),
    ("366 days", delay(366 * 86400), InvalidDelay, "after is 31622400"),
    ("delay NaN", delay(math.nan), InvalidDelay, "after is nan"),
    ("delay as text", delay("60"), InvalidDelay, "after is '60'"),
    ("delay as bool", delay(True), InvalidDelay, "after is True"),
    (
        "unknown key",
        lambda: event("BadInput.key", key="nope")(Happened),
        InvalidEventType,
        "key 'nope' is no field of Happened",
    ),
    (
        "key that is no text",
        lambda: event("BadInput.key", key=5)(Happened),
        InvalidEventType,
        "key 5 is no field",
    ),  # type: ignore[arg-type]
]

NAMES_OF_GROUPS: list[Row] = [
    (
        f"group {value!r}",
        group(value),
        InvalidGroupName,
        f"group name {shown} cannot be used: 1 to 64 characters",
    )
    for value, shown in [
        ("", "''"),
        ("a.b", "'a.b'"),
        ("a b", "'a b'"),
        ("a*", "'a*'"),
        ("a>", "'a>'"),
        ("a/b", "'a/b'"),
        ("a\\b", "'a\\\\b'"),
        ("a\n", "'a\\n'"),
        ("é", "'é'"),
        ("a" * 65, repr("a" * 65)),
        ("a__b", "'a__b'"),
        ("a_", "'a_'"),
        (None, "None"),
        (5, "5"),
    ]
]

SETTINGS: list[Row] = [
    (
        "wrong scheme",
        setting(nats="http://u:pw@h"),
        ConfigurationError,
        "nats URL is 'http://u:***@h': it must begin with nats://",
    ),
    (
        "wrong port",
        setting(nats="nats://u:pw@h:70000"),
        ConfigurationError,
        "'nats://u:***@h:70000': its host or port",
    ),
    (
        "wrong mongo scheme",
        setting(mongo="postgres://u:pw@h"),
        ConfigurationError,
        "mongo URL is 'postgres://u:***@h'",
    ),
    ("ack_wait 0", setting(ack_wait=0), InvalidOption, "ack_wait is 0: give a number from 0.3 to 3,600"),
    ("ack_wait negative", setting(ack_wait=-30), InvalidOption, "ack_wait is -30"),
    ("lease 0", setting(lease=0), InvalidOption, "lease is 0: give a number from 0.3"),
    ("lease NaN", setting(lease=math.nan), InvalidOption, "lease is nan"),
    (
        "no start allowed",
        setting(max_lost=0),
        InvalidOption,
        "max_lost is 0: give a whole number from 1 to 100",
    ),
    ("two replicas", setting(stream_replicas=2), InvalidOption, "stream_replicas is 2: give 1 or 3"),
    (
        "retries as a number",
        lambda: RetryPolicy(stop=-1),
        InvalidOption,
        "RetryPolicy stop is -1: give an object of tenacity",
    ),  # type: ignore[arg-type]
    (
        "wait as a number",
        lambda: RetryPolicy(wait=5),
        InvalidOption,
        "such as stop_after_attempt(5), wait_random_exponential",
    ),  # type: ignore[arg-type]
]

ROWS = NAMES + PAYLOADS + IDS_AND_DELAYS + NAMES_OF_GROUPS + SETTINGS


@pytest.mark.parametrize(("call", "kind", "text"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_input_is_refused(call: Callable[[], object], kind: type[EventDrivenError], text: str) -> None:
    with pytest.raises(EventDrivenError) as caught:
        call()
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "pw" not in str(caught.value)


def test_an_id_used_again_is_told_from_a_repeated_publish_by_its_content() -> None:
    first, again = (
        envelope(data={"a": 1}),
        envelope(data={"a": 1}, published_at=datetime(2026, 2, 1, tzinfo=UTC)),
    )
    assert first.content_hash() == again.content_hash()
    assert first.content_hash() != envelope(data={"a": 2}).content_hash()
    assert first.content_hash() != envelope(data={"a": 1.0}).content_hash()


@pytest.mark.parametrize(
    "data", [{"a.b": 1}, {"$set": {"x": 1}}, {"": 1}, {"a": "NUL \0 in text"}, {"_type": "x"}]
)
def test_odd_keys_and_texts_that_mongodb_can_hold_are_accepted(data: dict[str, Any]) -> None:
    assert Codec().encode(Happened(payload=data))["payload"] == data


def test_microseconds_are_kept_inside_the_payload() -> None:
    moment = datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
    assert Codec().encode(Happened(at=moment))["at"] == "2026-01-01T00:00:00.123456+00:00"
