"""Bad input to what an application calls, on real servers: the exact error, and nothing is stored."""

import asyncio
import enum
import math
import uuid
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pymongo
import pytest
from tenacity import stop_after_attempt

from eventdriven_sync import EventBus, RetryPolicy, Settings, Worker, event
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.errors import (
    Closed,
    ConfigurationError,
    DuplicateEvent,
    DuplicateHandler,
    EventDrivenError,
    EventIdReused,
    InvalidEventId,
    InvalidEventType,
    InvalidGroupName,
    InvalidHandler,
    InvalidOption,
    LeaseLost,
    NotFound,
    PayloadInvalid,
    PayloadNotSerializable,
    PayloadTooDeep,
    PayloadTooLarge,
)
from tests.polling import eventually

Call = Callable[[EventBus], object]
Row = tuple[str, Call, type[EventDrivenError], str]


@event("Input.given", key="number")
@attrs.frozen(kw_only=True)
class Given:
    payload: Any = None
    number: int = 0
    at: datetime | None = None
    password: str = ""


class Foreign:
    def __repr__(self) -> str:
        raise RuntimeError("cannot even be printed")


class Name(str, enum.Enum):  # noqa: UP042
    """What many applications keep their names in; its members format as ``Name.EVENT``."""

    EVENT = "Input.named"
    GROUP = "Named"
    NAMESPACE = "named"
    ID = "named-1"


@pytest.fixture(scope="module")
def database(servers: DevServers, mongo_client: pymongo.MongoClient[Any]) -> Iterator[Any]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield mongo_client[name]
    mongo_client.drop_database(name)


@pytest.fixture(scope="module")
def bus(servers: DevServers, database: Any) -> Iterator[EventBus]:
    """One bus for every row: none of them leaves anything behind."""
    settings = Settings(
        nats=servers.nats_url, mongo=servers.mongo_url(database.name), namespace=f"t{uuid.uuid4().hex[:12]}"
    )
    with EventBus(settings=settings) as made:
        made.open()
        yield made


@pytest.fixture
def site(servers: DevServers, mongo_url: str, namespace: str) -> Iterator[EventBus]:
    """A bus of this test alone, quick in everything it does later."""
    settings = Settings(
        nats=servers.nats_url,
        mongo=mongo_url,
        namespace=namespace,
        max_payload_bytes=8 * 1024 * 1024,
        max_chain_depth=3,
        reconcile_after=0.3,
        reconcile_every=0.1,
        poll_every=0.05,
    )
    with EventBus(settings=settings) as made:
        yield made


def publish(**fields: Any) -> Call:
    return lambda bus: bus.publish(Given(**fields))


def option(**options: Any) -> Call:
    return lambda bus: bus.publish(Given(), **options)


def thing(value: Any) -> Call:
    return lambda bus: bus.publish(value)


def named(name: Any) -> Call:
    """Declare a class under this name and publish it."""
    return lambda bus: bus.publish(event(name)(type("Anything", (), {}))())


def operation(**options: Any) -> Call:
    def begin(bus: EventBus) -> None:
        with bus.operation(**({"name": "import"} | options)):
            bus.publish(Given())

    return begin


def transaction(timeout: Any) -> Call:
    def begin(bus: EventBus) -> None:
        with bus.transaction(timeout=timeout):
            bus.publish(Given())

    return begin


def handler(group: Any = "Blog", *events: Any, function: Any = len, **options: Any) -> Call:
    given = {"name": "update"} | options
    return lambda bus: bus.group(group).handler(*(events or (Given,)), **given)(function)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NAMES: list[Row] = [
    (f"event name {shown}", named(name), InvalidEventType, fact)
    for name, shown, fact in [
        ("", "empty", "event type must be a non-empty string, got ''"),
        (None, "None", "got None"),
        (b"User.x", "bytes", "got b'User.x'"),
        (5, "number", "got 5"),
        ("User name", "space", "contains ' ' at position 4; allowed: A-Z a-z 0-9 _ -"),
        ("User.\u200bx", "zero width space", "contains '\\u200b' at position 5"),
        ("User.\u202ex", "right-to-left override", "contains '\\u202e' at position 5"),
        ("User.\ud800", "lone surrogate", "contains '\\ud800' at position 5"),
        ("User.x\r\nPUB a 0", "protocol injection", "contains '\\r' at position 6"),
        ("User/x", "slash", "contains '/' at position 4"),
        ("User.*", "star", "contains the wildcard '*' at position 5"),
        (">", "greater", "contains the wildcard '>' at position 0"),
        ("a..b", "double dot", "has an empty token"),
        ("...", "dots", "has an empty token"),
        ("$JS.API.STREAM.DELETE.x", "JetStream API", "contains '$' at position 0"),
        ("_INBOX.x", "inbox", "begins with _INBOX"),
        ("a" * 201, "201 characters", "201 characters, limit 200"),
        (".".join("a" * 17), "17 tokens", "17 tokens, limit 16"),
        ("p9.\u00e9", "accent", "contains '\u00e9' at position 3"),
    ]
]

THINGS: list[Row] = [
    ("None", thing(None), InvalidEventType, "NoneType is no event"),
    (
        "a dict",
        thing({"name": "User.x"}),
        InvalidEventType,
        "dict is no event: declare the class with @event",
    ),
    ("the class itself", thing(Given), PayloadInvalid, "expected Given, got type"),
    ("text", thing("Input.given"), InvalidEventType, "str is no event"),
    ("an undeclared subclass", thing(type("Sub", (Given,), {})()), InvalidEventType, "Sub is no event"),
    (
        "one wrong among many",
        lambda bus: bus.publish_many([Given(), 5, Given()]),
        InvalidEventType,
        "int is no event",
    ),
    (
        "one bad payload among many",
        lambda bus: bus.publish_many([Given(), Given(payload={1, 2})]),
        PayloadNotSerializable,
        "payload is set",
    ),
    (
        "an id too few",
        lambda bus: bus.publish_many([Given(), Given()], event_ids=["a"]),
        InvalidOption,
        "event_ids has 1 entries for 2 events",
    ),
]

PAYLOADS: list[Row] = [
    (
        "too large",
        publish(payload="x" * 1_200_345),
        PayloadTooLarge,
        "1,201,",
    ),
    ("too large in UTF-8", publish(payload="\u20ac" * 100_000), PayloadTooLarge, "limit 262,144"),
    ("too large escaped", publish(payload="\n" * 140_000), PayloadTooLarge, "publish a reference"),
    (
        "fits only without headers",
        publish(payload="x" * (262_144 - 900)),
        PayloadTooLarge,
        "headers included",
    ),
    (
        "Decimal",
        publish(payload={"items": [0, 0, 0, Decimal(1)]}),
        PayloadNotSerializable,
        "payload['items'][3] is Decimal",
    ),
    ("bytes", publish(payload=b"x"), PayloadNotSerializable, "payload is bytes"),
    ("date", publish(payload=[date(2026, 1, 1)]), PayloadNotSerializable, "payload[0] is date"),
    ("generator", publish(payload=(n for n in "ab")), PayloadNotSerializable, "payload is generator"),
    ("complex", publish(payload=1j), PayloadNotSerializable, "payload is complex"),
    ("a class", publish(payload=int), PayloadNotSerializable, "payload is type"),
    ("without repr", publish(payload=Foreign()), PayloadNotSerializable, "payload is Foreign"),
    (
        "without repr as number",
        publish(number=Foreign()),
        PayloadInvalid,
        "number: expected int, got Foreign",
    ),
    ("NaN", publish(payload={"a": [math.nan]}), PayloadNotSerializable, "payload['a'][0] is nan"),
    ("infinity", publish(payload=-math.inf), PayloadNotSerializable, "payload is -inf"),
    ("71 bits", publish(payload={"n": 2**70}), PayloadNotSerializable, "payload['n'] needs 71 bits"),
    ("5,000 digits", publish(payload=10**5000), PayloadNotSerializable, "MongoDB stores 64"),
    ("lone surrogate", publish(payload={"a": "\ud800"}), PayloadNotSerializable, "payload['a'] has the lone"),
    ("surrogate key", publish(payload={"\udfff": 1}), PayloadNotSerializable, "lone surrogate '\\udfff'"),
    (
        "NUL in a key",
        publish(payload=[{"a\0": 1}]),
        PayloadNotSerializable,
        "payload[0] key 'a\\x00' contains",
    ),
    ("number as key", publish(payload={1: 1}), PayloadNotSerializable, "payload key is int 1"),
    ("None as key", publish(payload={None: 1}), PayloadNotSerializable, "payload key is NoneType None"),
    ("101 levels", publish(payload=nested(100)), PayloadTooDeep, "depth 101, limit 100"),
    ("50,000 levels", publish(payload=nested(50_000)), PayloadTooDeep, "deeper than the limit 100"),
    ("a cycle", publish(payload=cycle()), PayloadNotSerializable, "a cycle"),
    ("naive datetime", publish(at=datetime(2026, 1, 1)), PayloadInvalid, "is naive: use an aware datetime"),
    (
        "date for a datetime",
        publish(at=date(2026, 1, 1)),
        PayloadInvalid,
        "at: expected an aware datetime, got date",
    ),
    ("text for a number", publish(number="3"), PayloadInvalid, "number: expected int, got str '3'"),
    ("bool for a number", publish(number=True), PayloadInvalid, "number: expected int, got bool True"),
    (
        "a secret of the wrong type",
        publish(password=["hunter2"]),
        PayloadInvalid,
        "password: expected str, got list ***",
    ),
]

OPTIONS: list[Row] = [
    *(
        (f"event_id {value!r:.20}", option(event_id=value), InvalidEventId, "use 1 to 64 characters")
        for value in ("", "a b", "a\n", "a/b", "\u00e9", "a" * 65, 5, b"a", ["a"], ".a", "-a", "a\ud800")
    ),
    *(
        (f"idempotency_key {value!r:.20}", option(idempotency_key=value), InvalidOption, "idempotency_key is")
        for value in ("", 5, b"a", "x" * 1001)
    ),
    ("id and key", option(event_id="a", idempotency_key="a"), InvalidOption, "not both"),
    *(
        (
            f"timeout {value!r}",
            option(timeout=value),
            InvalidOption,
            f"timeout is {value!r}: give a number from 0.01 to 60",
        )
        for value in (0, -1, math.nan, math.inf, "5", True)
    ),
    *(
        (
            f"transaction timeout {value!r}",
            transaction(value),
            InvalidOption,
            f"timeout is {value!r}: give a number",
        )
        for value in (0, -1, math.nan, "5", 10**9)
    ),
    ("source as number", option(source=5), InvalidOption, "source is 5: give text of 1 to 200 characters"),
    ("long source", option(source="x" * 201), InvalidOption, "source is 'xxx"),
    (
        "surrogate in source",
        option(source="\ud800"),
        InvalidOption,
        "source has the lone surrogate '\\ud800'",
    ),
]

OPERATIONS: list[Row] = [
    ("operation without name", operation(name=""), InvalidOption, "operation name is ''"),
    ("operation name as number", operation(name=5), InvalidOption, "operation name is 5"),
    ("operation name too long", operation(name="x" * 201), InvalidOption, "give text of 1 to 200 characters"),
    (
        "surrogate in the name",
        operation(name="\ud800"),
        InvalidOption,
        "operation name has the lone surrogate",
    ),
    ("operation kind", operation(kind=None), InvalidOption, "operation kind is None"),
    ("operation user as number", operation(user=5), InvalidOption, "operation user is 5"),
    ("operation user too long", operation(user="x" * 10**6), InvalidOption, "operation user is 'xxx"),
    ("variables as list", operation(variables=[1]), InvalidOption, "operation variables is [1]: give a dict"),
    (
        "object in variables",
        operation(variables={"a": object()}),
        PayloadNotSerializable,
        "variables['a'] is object",
    ),
    ("NUL in variables", operation(variables={"a\0": 1}), PayloadNotSerializable, "'a\\x00' contains NUL"),
    ("deep variables", operation(variables={"a": nested(101)}), PayloadTooDeep, "limit 100"),
    (
        "large variables",
        operation(variables={"a": "x" * 20_000_000}),
        PayloadTooLarge,
        "20,000,008 bytes encoded, limit 262,144",
    ),
]

HANDLERS: list[Row] = [
    *(
        (f"group {value!r:.20}", handler(value), InvalidGroupName, "group name ")
        for value in (
            "",
            "a.b",
            "a b",
            "a*",
            "a>",
            "a/b",
            "a\0",
            "\u00e9",
            "a" * 65,
            "a__b",
            "a_",
            None,
            5,
            b"a",
        )
    ),
    *(
        (f"handler {value!r:.20}", handler(name=value), InvalidGroupName, "handler name ")
        for value in ("", "a.b", "a b", ">", "a" * 65, 5)
    ),
    (
        "the same handler twice",
        lambda bus: _twice(_apart(bus)),
        DuplicateHandler,
        "handler Blog.update exists already",
    ),
    (
        "two classes of one name",
        lambda bus: handler("Blog", event("Input.given")(type("Twin", (), {})))(_apart(bus, Given)),
        DuplicateEvent,
        "event Input.given is declared by",
    ),
    (
        "handler without event",
        lambda bus: bus.group("Blog").handler(name="x")(len),
        InvalidHandler,
        "names no event class",
    ),
    ("handler of a class that is no event", handler("Blog", dict), InvalidEventType, "dict is no event"),
    (
        "handler without parameter",
        handler(function=lambda: None),
        InvalidHandler,
        "must be callable as (event)",
    ),
    ("no threads", handler(threads=0), InvalidOption, "threads is 0: give a number from 1 to 1,024"),
    ("negative timeout", handler(timeout=-1), InvalidOption, "handler Blog.update: timeout is -1"),
    ("retries as number", handler(retry=-1), InvalidOption, "retry is -1; give a RetryPolicy"),
    (
        "naive start",
        handler(start=datetime(2026, 1, 1)),
        InvalidOption,
        'give "new", "all" or an aware datetime',
    ),
]

QUESTIONS: list[Row] = [
    (
        "limit -1",
        lambda bus: bus.dead_letters.find(limit=-1),
        InvalidOption,
        "limit is -1: give a number from 1 to 10,000",
    ),
    ("limit 1e9", lambda bus: bus.dead_letters.find(limit=1e9), InvalidOption, "limit is 1000000000.0"),  # type: ignore[arg-type]
    (
        "handler as expression",
        lambda bus: bus.dead_letters.find(handler={"$ne": "x"}),
        InvalidOption,
        "handler is {'$ne': 'x'}: give text",
    ),  # type: ignore[arg-type]
    (
        "retrying an expression",
        lambda bus: bus.dead_letters.retry_all(group={"$gt": ""}),
        InvalidOption,
        "group is {'$gt': ''}",
    ),  # type: ignore[arg-type]
    (
        "id as expression",
        lambda bus: bus.dead_letters.get({"$ne": 1}),
        InvalidOption,
        "delivery id is {'$ne': 1}",
    ),  # type: ignore[arg-type]
    (
        "retrying an id as expression",
        lambda bus: bus.dead_letters.retry({"$ne": 1}),
        InvalidOption,
        "ids is {'$ne': 1}",
    ),  # type: ignore[arg-type]
    (
        "surrogate in an id",
        lambda bus: bus.dead_letters.retry("\ud800"),
        InvalidOption,
        "ids has the lone surrogate",
    ),
    (
        "naive since",
        lambda bus: bus.dead_letters.find(since=datetime(2026, 1, 1)),
        InvalidOption,
        "give an aware datetime",
    ),
    (
        "unknown delivery",
        lambda bus: bus.dead_letters.retry("nobody"),
        NotFound,
        "no delivery has the id 'nobody'",
    ),
    (
        "discarding without reason",
        lambda bus: bus.dead_letters.discard("a", reason=" "),
        InvalidOption,
        "discard needs a reason",
    ),
    (
        "unknown operation",
        lambda bus: bus.operations.chain("nobody"),
        NotFound,
        "no operation has the id 'nobody'",
    ),
    (
        "operation as expression",
        lambda bus: bus.operations.chain({"$ne": 1}),
        InvalidOption,
        "operation id is {'$ne': 1}",
    ),  # type: ignore[arg-type]
    ("operation as number", lambda bus: bus.operations.get(5), InvalidOption, "operation id is 5"),  # type: ignore[arg-type]
    (
        "worker without threads",
        lambda bus: Worker(_with_handler(bus), threads=0),
        InvalidOption,
        "threads is 0",
    ),
    (
        "worker with too many",
        lambda bus: Worker(_with_handler(bus), threads=5000),
        InvalidOption,
        "from 1 to 1,024",
    ),
    (
        "negative grace",
        lambda bus: Worker(_with_handler(bus), grace=-1),
        InvalidOption,
        "grace is -1: give a number from 0",
    ),
    (
        "unknown group",
        lambda bus: Worker(_with_handler(bus), groups=["Nobody"]),
        ConfigurationError,
        "Nobody",
    ),
    ("nothing to run", lambda bus: Worker(_apart(bus)), ConfigurationError, "handler"),
]

ROWS = [*NAMES, *THINGS, *PAYLOADS, *OPTIONS, *OPERATIONS, *HANDLERS, *QUESTIONS]


def _apart(bus: EventBus, *events: type) -> EventBus:
    """A bus without handlers that knows these events; nothing of it is ever opened."""
    fresh = EventBus(settings=bus.settings)
    for cls in events:
        fresh.group("Other").handler(cls, name="other")(len)
    return fresh


def _twice(bus: EventBus) -> None:
    for function in (len, str):
        handler(function=function)(bus)


def _with_handler(bus: EventBus) -> EventBus:
    return _apart(bus, Given)


@pytest.mark.parametrize(
    ("call", "kind", "fact"),
    [row[1:] for row in ROWS],
    ids=[row[0].encode("unicode_escape").decode() for row in ROWS],
)
def test_bad_input_is_refused_by_its_own_error_and_nothing_is_stored(
    bus: EventBus, database: Any, call: Call, kind: type[EventDrivenError], fact: str
) -> None:
    with pytest.raises(EventDrivenError) as caught:
        call(bus)
    text = str(caught.value)
    assert type(caught.value) is kind
    assert fact in text
    assert len(text) < 500
    assert "hunter2" not in text
    assert database.events.count_documents({}) == 0
    assert database.operations.count_documents({"status": "succeeded"}) == 0
    assert database.deliveries.count_documents({}) == 0
    assert bus.broker.status().dispatched == 0


# --- what only shows after something was stored -----------------------------------------------------------


def test_an_id_stands_for_one_content_for_ever(site: EventBus) -> None:
    site.publish(Given(number=1), event_id="input-1")
    with pytest.raises(EventIdReused, match="event_id 'input-1' exists with other content") as caught:
        site.publish(Given(number=2), event_id="input-1")
    assert type(caught.value) is EventIdReused
    with pytest.raises(EventIdReused, match="'twice'"):
        site.publish_many([Given(number=1), Given(number=2)], event_ids=["twice", "twice"])
    assert site.publish(Given(number=1), event_id="input-1").duplicate


def test_a_wrong_timeout_of_a_publish_inside_a_handler_is_refused_at_once(site: EventBus) -> None:
    def publish_badly(given: Given) -> None:
        if given.number == 0:
            site.publish(Given(number=1), timeout=-1)

    letter = dead_letter_of(site, publish_badly, Given())
    assert letter.failures[-1].message == "timeout is -1: give a number from 0.01 to 60"
    assert site.store.events.count(["Input.given"], since=None) == 1


def test_a_chain_of_events_that_never_ends_is_ended_with_its_beginning_named(site: EventBus) -> None:
    def repeat(given: Given) -> None:
        site.publish(Given(number=given.number + 1))

    letter = dead_letter_of(site, repeat, Given())
    assert letter.reason == "not_retryable"
    assert letter.failures[-1].error_type == "ChainTooDeep"
    assert "would be event 4 of its chain, limit 3" in letter.failures[-1].message
    assert f"began with operation {letter.operation_id}" in letter.failures[-1].message
    assert site.store.events.count(["Input.given"], since=None) == 4


def test_a_handler_that_lost_its_delivery_publishes_nothing(site: EventBus) -> None:
    caught: list[BaseException] = []

    def hang(given: Given) -> None:
        eventually(lambda: site.dead_letters.count() == 1, timeout=30)
        for immediate in (True, False):
            try:
                site.publish(Given(number=1), immediate=immediate)
            except LeaseLost as error:
                caught.append(error)

    letter = dead_letter_of(site, hang, Given(), timeout=0.2)
    assert letter.reason == "timeout"
    eventually(lambda: len(caught) == 2)
    assert "Blog.handle no longer owns this delivery" in str(caught[0])
    assert site.store.events.count(["Input.given"], since=None) == 1


def dead_letter_of(site: EventBus, handle: Callable[[Given], None], given: Given, **options: Any) -> Any:
    """What becomes of an event whose handler is allowed no second attempt."""
    policy = RetryPolicy(stop=stop_after_attempt(1))
    site.group("Blog").handler(Given, name="handle", retry=policy, **options)(handle)
    worker = Worker(site, threads=2, grace=2.0).start()
    site.publish(given)
    found = eventually(lambda: site.dead_letters.find(), timeout=30)
    worker.stop()
    return site.dead_letters.get(found[0].id)


def test_an_event_larger_than_the_brokers_limit_is_handled_all_the_same(site: EventBus) -> None:
    seen: list[int] = []
    site.group("Blog").handler(Given, name="measure")(lambda given: seen.append(len(given.payload)))
    worker = Worker(site, threads=2, grace=2.0).start()
    site.publish(Given(payload="x" * 1_500_000))
    assert site.flush()
    assert "max_payload of the server is 1048576 including headers" in site.broker.status().last_error
    eventually(lambda: seen == [1_500_000], timeout=30)
    worker.stop()


def test_publishing_inside_an_event_loop_warns_once_and_names_the_callers_line(site: EventBus) -> None:
    blog = site.group("Blog")

    async def main() -> None:
        blog.publish(Given(number=1))
        site.publish(Given(number=2))
        site.publish_many([Given(number=3)])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    assert "asyncio.to_thread(bus.publish, event)" in str(caught[0].message)
    assert site.store.events.count(["Input.given"], since=None) == 3


def test_a_closed_bus_stores_nothing_and_says_what_to_do(site: EventBus) -> None:
    site.publish(Given())
    assert site.store.events.count(["Input.given"], since=None) == 1
    site.close()
    for call in (publish(), transaction(None), operation()):
        with pytest.raises(Closed, match="build a new"):
            call(site)


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": {"a.b": 1, "$set": {"x": 1}, "": 2, "__proto__": None, "_id": 5}},
        {"payload": "NUL \0, \u2028 and \U0001f600"},
        {"payload": [2**63 - 1, -(2**63), 5e-324, 1.7976931348623157e308, -0.0]},
        {"payload": nested(98)},
        {"payload": {"x" * 10_000: ""}},
        {"at": datetime(1, 1, 1, tzinfo=UTC)},
        {"at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
    ],
    ids=["odd keys", "odd text", "extreme numbers", "deep", "a long key", "year 1", "year 9999"],
)
def test_what_looks_odd_and_can_be_stored_arrives_unchanged(site: EventBus, fields: dict[str, Any]) -> None:
    seen: list[Given] = []
    site.group("Blog").handler(Given, name="look")(seen.append)
    worker = Worker(site, threads=1, grace=2.0).start()
    site.publish(Given(**fields))
    assert eventually(lambda: seen, timeout=30) == [Given(**fields)]
    worker.stop()


def test_names_from_an_enumeration_are_their_values_everywhere(servers: DevServers, mongo_url: str) -> None:
    seen: list[object] = []
    renamed = event(Name.EVENT)(type("Renamed", (), {}))
    settings = Settings(nats=servers.nats_url, mongo=mongo_url, namespace=Name.NAMESPACE)
    with EventBus(settings=settings) as bus:
        bus.group(Name.GROUP).handler(renamed, name="look")(seen.append)
        worker = Worker(bus, groups=[Name.GROUP], threads=1, grace=2.0).start()
        receipt = bus.publish(renamed(), event_id=Name.ID)
        eventually(lambda: seen, timeout=30)
        worker.stop()
        assert f"{receipt.id} {receipt.operation_id} {list(bus.handlers)}" == "named-1 named-1 ['Named.look']"
        assert [stream.subjects for stream in bus.broker.streams("named_", timeout=5)] == [
            ("named.Input", "named.Input.>")
        ]
