"""Payloads and messages: what is refused says where and why, what is accepted comes back the same."""

import enum
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Final, Generic, Literal, NewType, TypeVar
from uuid import UUID

import attrs
import pytest
from bson import ObjectId
from bson.int64 import Int64
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventdriven_sync import codec as codec_module
from eventdriven_sync import event
from eventdriven_sync.codec import HEADER_ALLOWANCE, Codec
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import (
    CodecError,
    InvalidEnvelope,
    InvalidEventType,
    PayloadInvalid,
    PayloadNotSerializable,
    PayloadTooDeep,
    PayloadTooLarge,
    Undecodable,
)
from eventdriven_sync.events import event_type_of

T = TypeVar("T")
UserId = NewType("UserId", str)
SEVEN = UUID(int=7)
MONGO_ID = ObjectId("65f000000000000000000001")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Size(enum.StrEnum):
    SMALL = "s"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@attrs.frozen
class Address:
    zip: str
    city: str = "Paris"


@attrs.frozen
class Box:
    number: int


@attrs.frozen
class Page(Generic[T]):
    items: list[T]
    first: T


@attrs.frozen
class Node:
    name: str
    children: "list[Node]" = attrs.field(factory=list)
    parent: "Node | None" = None


@attrs.frozen
class Broken:
    other: "Broken | None" = None
    number: complex = 0


@attrs.frozen
class ForeignAddress(Address):
    country: str = "GB"


@event("Codec.everything")
@attrs.frozen(kw_only=True)
class Everything:
    text: str = "é"
    whole: int = -(2**63)
    number: float = 1e-300
    flag: bool = True
    _secret: int = 1
    renamed: int = attrs.field(default=2, alias="other")
    color: Color = Color.RED
    level: Level = Level.HIGH
    size: Size = Size.SMALL
    rights: Right = Right.READ | Right.WRITE
    day: date = date(2026, 2, 28)
    moment: datetime = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=-5)))
    span: timedelta = timedelta(days=-3, microseconds=7)
    price: Decimal = Decimal("10.00")
    uuid: UUID = SEVEN
    mongo_id: ObjectId = MONGO_ID
    raw: bytes = b"\x00\xff"
    pair: tuple[int, str] = (1, "a")
    row: tuple[int, ...] = (1, 2, 3)
    names: set[str] = attrs.field(factory=lambda: {"b", "a", "c"})
    ids: frozenset[UUID] = frozenset({UUID(int=2), UUID(int=1)})
    maybe: Decimal | None = None
    number_or_text: int | float | str = 2
    choice: Literal["auto", 1] | UUID = "auto"
    place: Address | Box | None = Box(number=4)
    place_or_name: Address | str = Address(zip="1")
    anything: Any = attrs.field(factory=lambda: {"a.b": [1, None, {"$c": 1.5}], "": True})
    by_uuid: dict[UUID, list[int]] = attrs.field(factory=lambda: {UUID(int=1): [1]})
    by_color: dict[Color, int] = attrs.field(factory=lambda: {Color.BLUE: 1})
    page: Page[Address] = attrs.field(factory=lambda: Page([Address("1")], Address("2")))
    tree: Node = attrs.field(factory=lambda: Node("root", [Node("leaf")], Node("up")))
    user: UserId = UserId("u1")
    annotated: Annotated[int, "a note"] = 3
    final: Final[int] = 4
    converter: int = 5
    cl: int = 6


@event("Codec.loose")
@attrs.frozen(kw_only=True)
class Loose:
    payload: Any = None


@event("Codec.strict")
@attrs.frozen(kw_only=True)
class Strict:
    address: Address
    amounts: list[Decimal] = attrs.field(factory=list)
    at: datetime | None = None
    password: int = 0
    tree: Node | None = None
    place: Address | Box | None = None
    limits: dict[str, float] = attrs.field(factory=dict)
    pair: tuple[int, str] = (1, "a")
    day: date | None = None
    span: timedelta = timedelta()
    mode: Literal["a", 1] = "a"
    color: Color = Color.RED
    count: int = 0
    by_uuid: dict[UUID, int] = attrs.field(factory=dict)
    tags: set[str] = attrs.field(factory=set)


EVERYTHING, LOOSE, STRICT = map(event_type_of, (Everything, Loose, Strict))
GOOD = Address("75001")
SHARED = Codec()  # for property tests: a new one would read its classes again for each example


@pytest.fixture(params=["orjson", "json"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Codec:
    """A codec with and without the extra."""
    if request.param == "json":
        monkeypatch.setattr(codec_module, "orjson", None)
    return Codec()


def strict(**fields: Any) -> Strict:
    return Strict(**{"address": GOOD, **fields})


def refused(value: object) -> CodecError:
    with pytest.raises(CodecError) as caught:
        Codec().encode(value)
    return caught.value


def cycle() -> list[Any]:
    ring: list[Any] = []
    ring.append({"again": ring})
    return ring


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# --- payloads --------------------------------------------------------------------------------------------


def test_every_supported_type_comes_back_equal_through_bytes(codec: Codec) -> None:
    before = Everything()
    document = codec.encode(before)
    message = codec.pack(envelope(data=document, name=EVERYTHING.name), "shop")
    assert codec.decode(EVERYTHING, codec.unpack(message).data) == before


def test_a_document_holds_only_json_and_uses_aliases_values_and_tags() -> None:
    document = Codec().encode(Everything())
    assert json.loads(json.dumps(document)) == document
    assert document["secret"] == 1
    assert document["other"] == 2
    assert document["color"] == "red"
    assert document["rights"] == 3
    assert document["place"] == {"_type": "Box", "number": 4}
    assert document["place_or_name"] == {"zip": "1", "city": "Paris"}
    assert document["moment"] == "2026-01-31T12:00:00.123456-05:00"
    assert document["price"] == "10.00"
    assert document["names"] == ["a", "b", "c"]
    assert document["raw"] == "AP8="


def test_a_private_field_is_read_under_its_alias() -> None:
    found = Codec().decode(EVERYTHING, {"secret": 8, "other": 9, "_secret": 1, "renamed": 1})
    assert (found._secret, found.renamed) == (8, 9)


def test_a_field_that_is_no_argument_of_the_class_is_not_part_of_the_payload() -> None:
    @event("Codec.computed")
    @attrs.frozen
    class Computed:
        number: int
        square: complex = attrs.field(init=False)

        @square.default
        def _(self) -> complex:
            return self.number**2 + 0j

    codec, before = Codec(), Computed(3)
    assert codec.encode(before) == {"number": 3}
    assert codec.decode(event_type_of(before), {"number": 3}) == before


def test_a_moment_with_an_offset_no_other_language_reads_is_written_in_utc() -> None:
    odd = timezone(timedelta(hours=1, seconds=7))
    written = Codec().encode(strict(at=datetime(2026, 1, 1, 12, tzinfo=odd)))["at"]
    assert written == "2026-01-01T10:59:53+00:00"


def test_a_document_shares_nothing_with_the_event_or_the_decoded_object() -> None:
    codec, given_value = Codec(), {"list": [1]}
    document = codec.encode(Loose(payload=given_value))
    given_value["list"].append(2)
    assert document == {"payload": {"list": [1]}}
    codec.decode(LOOSE, document).payload["list"].append(3)
    assert document == {"payload": {"list": [1]}}


def test_any_takes_what_json_knows_and_its_subclasses() -> None:
    given_value = {"tuple": (1, 2), "size": Size.SMALL, "level": Level.LOW, "int64": Int64(5), "flag": False}
    document = Codec().encode(Loose(payload=given_value))["payload"]
    assert document == {"tuple": [1, 2], "size": "s", "level": 1, "int64": 5, "flag": False}
    assert [type(value) for value in document.values()] == [list, str, int, int, bool]


def test_sets_of_mixed_or_structured_items_are_written_in_one_order() -> None:
    @event("Codec.mixed")
    @attrs.frozen
    class Mixed:
        items: set[Any]

    first, second = {"b", 1, None, "a"}, {None, "a", "b", 1}
    assert Codec().encode(Mixed(first)) == Codec().encode(Mixed(second))


NOT_SERIALIZABLE = [
    ({"items": [1, 2, 3, Decimal(1)]}, "payload['items'][3] is Decimal, which JSON does not know"),
    ({1, 2}, "payload is set"),
    (datetime(2026, 1, 1, tzinfo=UTC), "payload is datetime"),
    (GOOD, "payload is Address"),
    (object(), "payload is object"),
    (b"raw", "payload is bytes"),
    ({"a": float("nan")}, "payload['a'] is nan"),
    ([float("inf")], "payload[0] is inf"),
    ({"n": 2**70}, "payload['n'] needs 71 bits"),
    ([-(2**63) - 1], "payload[0] needs 64 bits and a sign"),
    (["ok", "\ud800"], "payload[1] has the lone surrogate '\\ud800' at position 0"),
    ({"a\0": 1}, "payload key 'a\\x00' contains NUL"),
    ({"\udfff": 1}, "payload key has the lone surrogate"),
    ({5: 1}, "payload key is int 5: keys must be str"),
    ({None: 1}, "payload key is NoneType None: keys must be str"),
    (cycle(), "payload[0]['again'] refers back to an object that contains it"),
]


@pytest.mark.parametrize(("value", "problem"), NOT_SERIALIZABLE, ids=[row[1] for row in NOT_SERIALIZABLE])
def test_what_json_or_mongodb_cannot_hold_is_refused_with_its_path(value: Any, problem: str) -> None:
    error = refused(Loose(payload=value))
    assert type(error) is PayloadNotSerializable
    assert error.problems[0].startswith(problem)
    assert str(error).startswith("Codec.loose cannot be published: payload")


def ring() -> Node:
    node = Node("a")
    node.children.append(node)
    return node


INVALID = [
    ({"address": Address(5)}, ["address.zip: expected str, got int 5"]),  # type: ignore[arg-type]
    ({"address": None}, ["address: expected Address, got None"]),
    ({"address": ForeignAddress("1")}, ["address: expected Address, got ForeignAddress ForeignAddress("]),
    ({"address": {"zip": "1"}}, ["address: expected Address, got dict {'zip': '1'}"]),
    (
        {"amounts": [Decimal(1), 2, "3"]},
        ["amounts[1]: expected Decimal, got int 2", "amounts[2]: expected Dec"],
    ),
    ({"amounts": (Decimal(1),)}, ["amounts: expected list[decimal.Decimal], got tuple"]),
    ({"amounts": [Decimal("sNaN")]}, ["amounts[0] is Decimal sNaN"]),
    ({"amounts": [Decimal("-Infinity")]}, ["amounts[0] is Decimal -Infinity"]),
    ({"at": datetime(2026, 1, 1)}, ["at: 2026-01-01 00:00:00 is naive: use an aware datetime"]),
    ({"at": date(2026, 1, 1)}, ["at: expected an aware datetime, got date"]),
    ({"day": datetime(2026, 1, 1, tzinfo=UTC)}, ["day: expected date, got datetime"]),
    ({"limits": {"x": 1, "y": True}}, ["limits['y']: expected float, got bool True"]),
    ({"limits": {5: 1.0}}, ["limits key is int 5: keys must be str"]),
    ({"by_uuid": {"x": 1}}, ["by_uuid key: expected UUID, got str 'x'"]),
    ({"pair": (1,)}, ["pair: expected 2 items, got 1"]),
    ({"pair": (1, 2)}, ["pair[1]: expected str, got int 2"]),
    ({"mode": "b"}, ["mode: expected Literal['a', 1], got str 'b'"]),
    ({"mode": True}, ["mode: expected Literal['a', 1], got bool True"]),
    ({"mode": []}, ["mode: expected Literal['a', 1], got list []"]),
    ({"color": "red"}, ["color: expected Color, got str 'red'"]),
    ({"count": True}, ["count: expected int, got bool True"]),
    ({"count": 1.0}, ["count: expected int, got float 1.0"]),
    ({"count": "3"}, ["count: expected int, got str '3'"]),
    ({"place": Node("x")}, ["place: expected Address | Box, got Node"]),
    ({"place": Box("x")}, ["place.number: expected int, got str 'x'"]),  # type: ignore[arg-type]
    ({"tree": Node("a", [Node("b"), Node(3)])}, ["tree.children[1].name: expected str, got int 3"]),  # type: ignore[arg-type]
    ({"tree": ring()}, ["tree.children[0] refers back to an object that contains it"]),
    ({"span": timedelta.max}, ["span is too long to keep its microseconds"]),
    ({"tags": {1}}, ["tags[0]: expected str, got int 1"]),
    ({"count": "x", "day": 5}, ["day: expected date, got int 5", "count: expected int, got str 'x'"]),
]


@pytest.mark.parametrize(("fields", "problems"), INVALID, ids=[row[1][0] for row in INVALID])
def test_a_wrong_type_is_refused_at_publish_with_every_path(fields: Any, problems: list[str]) -> None:
    error = refused(strict(**fields))
    impossible = re.match(r"\S+( key)? (is|refers) ", problems[0])
    assert type(error) is (PayloadNotSerializable if impossible else PayloadInvalid)
    assert len(error.problems) == len(problems)
    for found, expected in zip(error.problems, problems, strict=True):
        assert found.startswith(expected)
        assert found in str(error)


def test_the_value_of_a_secret_is_not_shown() -> None:
    error = refused(strict(password="hunter2"))
    assert error.problems == ["password: expected int, got str ***"]
    assert "hunter2" not in str(error)


def test_long_values_and_many_problems_are_cut() -> None:
    error = refused(strict(amounts=["x" * 10_000] * 5_000))
    assert len(error.problems) == codec_module.MAX_PROBLEMS
    assert len(str(error)) < 3_000
    assert "and 90 more" in str(error)


@pytest.mark.parametrize("depth", [99, 100, 150, 5_000])
def test_the_depth_of_a_payload_is_limited(depth: int) -> None:
    event_ = Loose(payload=nested(depth))
    if depth == 99:
        assert Codec().encode(event_) == {"payload": nested(99)}
        return
    error = refused(event_)
    assert type(error) is PayloadTooDeep
    assert "limit 100" in str(error)
    if depth < 300:
        assert error.depth == depth + 1


def test_the_depth_of_a_recursive_class_is_limited() -> None:
    tree = Node("leaf")
    for _ in range(60):
        tree = Node("branch", [tree])
    assert type(refused(strict(tree=tree))) is PayloadTooDeep


def test_encoding_close_to_the_recursion_limit_of_the_caller_is_an_error_of_ours() -> None:
    def dive(levels: int) -> CodecError:
        return refused(Loose(payload=nested(99))) if levels == 0 else dive(levels - 1)

    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1  # type: ignore[assignment]
    error = dive(sys.getrecursionlimit() - used - 60)
    assert isinstance(error, CodecError)


def test_a_class_that_is_no_event_is_refused() -> None:
    with pytest.raises(InvalidEventType, match="Address is no event"):
        Codec().encode(GOOD)


def declare(kind: Any) -> Any:
    return event("Codec.declared")(attrs.make_class("Declared", {"field": attrs.field(type=kind)}))


UNSUPPORTED = [
    (complex, "field is declared as complex, which no payload can hold"),
    (list[Page[complex]], "field.items is declared as complex"),
    (dict[int, str], "field is declared as dict[int, str]: JSON keys are text"),
    (date | datetime, "date and an aware datetime look alike in JSON"),
    (list[int] | set[str], "look alike in JSON"),
    (Address | Box | dict[str, int], "two of its members look alike in JSON"),
    (enum.Enum("Odd", {"A": object()}), "is declared as Odd, whose value"),
    (enum.Enum("Long", {"A": 2**70}), "field needs 71 bits"),
    (Broken, "field.number is declared as complex"),
]


@pytest.mark.parametrize(("kind", "problem"), UNSUPPORTED, ids=[row[1] for row in UNSUPPORTED])
def test_a_type_that_cannot_be_told_from_json_is_refused_by_its_declaration(kind: Any, problem: str) -> None:
    declared = declare(kind)
    for attempt in (
        lambda: Codec().encode(declared(None)),
        lambda: Codec().decode(event_type_of(declared), {"field": 1}),
    ):
        with pytest.raises(PayloadNotSerializable) as caught:
            attempt()
        assert problem in str(caught.value)
        assert "cannot be an event" in str(caught.value)


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(PayloadNotSerializable, match="Nowhere"):
        Codec().encode(declare("list[Nowhere]")([]))


def test_a_refused_class_is_refused_again_for_the_same_reason() -> None:
    codec, declared = Codec(), declare(Broken | None)
    messages = set()
    for _ in range(2):
        with pytest.raises(PayloadNotSerializable, match="number is declared as complex") as caught:
            codec.encode(declared(Broken()))
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_a_class_is_usable_after_another_that_refers_to_it_was_refused() -> None:
    codec = Codec()
    broken = declare(dict[str, Node | complex])
    with pytest.raises(PayloadNotSerializable):
        codec.encode(broken({}))
    assert codec.encode(strict(tree=Node("a", [Node("b")])))["tree"]["children"][0]["name"] == "b"


# --- reading payloads ------------------------------------------------------------------------------------


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    found = Codec().decode(STRICT, {"address": {"zip": "1", "new": [1]}, "from_the_future": {}})
    assert found == Strict(address=Address("1"))


UNREADABLE: list[tuple[Any, list[str]]] = [
    ({}, ["address: required field is missing"]),
    ({"address": {}}, ["address.zip: required field is missing"]),
    ({"address": "x"}, ["address: expected an object, got str 'x'"]),
    (
        {"address": {"zip": 5, "city": None}},
        ["address.zip: expected str, got int 5", "address.city: expected str"],
    ),
    ({"count": "3"}, ["address: required field is missing", "count: expected int, got str '3'"]),
    ({"address": {"zip": "1"}, "at": "2026-01-01T00:00:00"}, ["at: expected an aware datetime as text"]),
    ({"address": {"zip": "1"}, "at": 5}, ["at: expected an aware datetime as text, got int 5"]),
    (
        {"address": {"zip": "1"}, "amounts": ["1", "NaN"]},
        ["amounts[1]: expected Decimal as text, got str 'NaN'"],
    ),
    ({"address": {"zip": "1"}, "amounts": {"0": "1"}}, ["amounts: expected list[decimal.Decimal], got dict"]),
    ({"address": {"zip": "1"}, "color": "green"}, ["color: expected 'red' or 'blue', got str 'green'"]),
    ({"address": {"zip": "1"}, "place": {"_type": "Box"}}, ["place.number: required field is missing"]),
    ({"address": {"zip": "1"}, "place": {"_type": "Pot"}}, ["place: expected Address | Box, got dict"]),
    ({"address": {"zip": "1"}, "place": {"zip": "1"}}, ["place: expected Address | Box, got dict"]),
    ({"address": {"zip": "1"}, "pair": [1]}, ["pair: expected 2 items, got 1"]),
    ({"address": {"zip": "1"}, "span": 1e300}, ["span: expected timedelta as seconds, got float 1e+300"]),
    ({"address": {"zip": "1"}, "by_uuid": {"x": 1}}, ["by_uuid key: expected UUID as text, got str 'x'"]),
    ([], ["payload: expected an object, got list []"]),
]


@pytest.mark.parametrize(("data", "problems"), UNREADABLE, ids=[row[1][0] for row in UNREADABLE])
def test_a_document_of_another_shape_is_refused_with_every_path(data: Any, problems: list[str]) -> None:
    with pytest.raises(PayloadInvalid) as caught:
        Codec().decode(STRICT, data)
    assert len(caught.value.problems) == len(problems)
    for found, expected in zip(caught.value.problems, problems, strict=True):
        assert found.startswith(expected)
    assert str(caught.value).startswith("Codec.strict cannot be read: ")


def test_a_validator_of_the_users_class_is_reported_at_the_path_of_its_object() -> None:
    @attrs.frozen
    class Positive:
        number: int = attrs.field(validator=attrs.validators.gt(0))

    declared = declare(list[Positive])
    with pytest.raises(PayloadInvalid, match=r"field\[1\]: ValueError: 'number' must be > 0"):
        Codec().decode(event_type_of(declared), {"field": [{"number": 1}, {"number": -1}]})


def test_long_ints_as_mongodb_reads_them_are_ints() -> None:
    found = Codec().decode(EVERYTHING, {"whole": Int64(2**40), "number_or_text": Int64(2**40)})
    assert type(found.whole) is int
    assert found.number_or_text == 2**40


@pytest.mark.parametrize("text", ["yes", "zz" * 12, "65f0", "é" * 24])
def test_text_that_is_no_object_id_is_refused(text: str) -> None:
    with pytest.raises(PayloadInvalid, match="mongo_id: expected ObjectId as text"):
        Codec().decode(EVERYTHING, {"mongo_id": text})


def test_variables_of_an_operation_become_json_though_nothing_is_declared() -> None:
    variables = {"id": UUID(int=1), "day": date(2026, 1, 1), "tags": ("a", {"b"}), "color": Color.RED, "n": 1}
    assert Codec().plain(variables) == {
        "id": "00000000-0000-0000-0000-000000000001",
        "day": "2026-01-01",
        "tags": ["a", ["b"]],
        "color": "red",
        "n": 1,
    }
    with pytest.raises(PayloadNotSerializable, match=r"variables\['a'\]\[0\] is object"):
        Codec().plain({"a": [object()]})
    with pytest.raises(PayloadTooDeep):
        Codec().plain({"a": nested(120)})


# --- messages --------------------------------------------------------------------------------------------

ID = "65f0000000000000000000aa"


def envelope(**fields: Any) -> Envelope:
    known: dict[str, Any] = {
        "id": ID,
        "name": "User.nameUpdated",
        "version": 1,
        "data": {},
        "published_at": datetime(2026, 1, 31, 12, 0, 0, 123000, tzinfo=UTC),
        "operation_id": "op-1",
    }
    return Envelope(**(known | fields))


def message(**fields: Any) -> bytes:
    """A foreign event; a field given as None is left out."""
    known: dict[str, Any] = {
        "specversion": "1.0",
        "id": "a1",
        "type": "User.x",
        "time": "2026-01-31T12:00:00Z",
        "data": {"a": 1},
    }
    return json.dumps({k: v for k, v in (known | fields).items() if v is not None}).encode()


def test_the_message_is_a_cloudevents_document(codec: Codec) -> None:
    given_value = envelope(source="Blog.update", parent_ids=("p1", "p2"), key="42", depth=2, data={"a": "é"})
    assert json.loads(codec.pack(given_value, "shop")) == {
        "specversion": "1.0",
        "id": ID,
        "source": "/shop/Blog/update",
        "type": "User.nameUpdated",
        "time": "2026-01-31T12:00:00.123Z",
        "datacontenttype": "application/json",
        "dataversion": 1,
        "operationid": "op-1",
        "chaindepth": 2,
        "parentids": "p1,p2",
        "partitionkey": "42",
        "data": {"a": "é"},
    }


ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}", fullmatch=True)
names = st.from_regex(r"[A-Za-z0-9-]{1,9}(\.[A-Za-z0-9_-]{1,9}){0,3}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts.filter(lambda text: "\0" not in text), inner),
    max_leaves=20,
)
moments = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
)
envelopes = st.builds(
    Envelope,
    id=ids,
    name=names,
    version=st.integers(1, 2**31 - 1),
    data=st.dictionaries(st.text("abc", min_size=1), plain, max_size=4),
    published_at=moments,
    operation_id=ids,
    parent_ids=st.lists(st.sampled_from(["p-1", "p-2", "p-3"]), unique=True).map(tuple),
    source=st.sampled_from(["", "Blog", "Blog.update_author"]),
    key=st.none() | texts,
    depth=st.integers(0, 2**31 - 1),
    trace=st.dictionaries(st.sampled_from(["traceparent", "tracestate", "baggage"]), texts),
)


@pytest.mark.parametrize("fast", [True, False])
@settings(deadline=None)
@given(before=envelopes)
@example(
    before=envelope(data={"n": 2**63 - 1, "e": "\U0001f600", "esc": '\\"[{', "f": 1e308, "digits": "1" * 30})
)
def test_unpacking_is_the_inverse_of_packing(fast: bool, before: Envelope) -> None:
    found, codec = codec_module.orjson, SHARED
    codec_module.orjson = found if fast else None
    try:
        body = codec.pack(before, "shop")
        headers = {"Nats-Msg-Id": before.id}
        after = codec.unpack(body, headers=headers, subject=f"shop.{before.name}", namespace="shop")
    finally:
        codec_module.orjson = found
    assert after == before
    assert after.content_hash() == before.content_hash()


@settings(deadline=None)
@given(value=plain)
def test_encoding_and_decoding_any_json_value_changes_nothing(value: Any) -> None:
    codec = SHARED
    document = codec.encode(Loose(payload=value))
    assert document == {"payload": value}
    assert codec.decode(LOOSE, document) == Loose(payload=value)


@settings(deadline=None)
@given(
    moment=st.datetimes(timezones=st.timezones()), price=st.decimals(allow_nan=False, allow_infinity=False)
)
def test_moments_and_decimals_are_kept_exactly(moment: datetime, price: Decimal) -> None:
    codec = SHARED
    if not timedelta(days=2) < moment.replace(tzinfo=None) - datetime.min < timedelta(days=3_650_000):
        return
    found = codec.decode(STRICT, codec.encode(strict(at=moment, amounts=[price])))
    assert found.at.astimezone(UTC) == moment.astimezone(UTC)
    assert str(found.amounts[0]) == str(price)


def test_a_payload_over_the_limit_is_refused_with_figures(codec: Codec) -> None:
    small = Codec(max_payload_bytes=2048)
    size = len(small.pack(envelope(), "shop"))
    room = 2048 - HEADER_ALLOWANCE - size - len('"a":""')
    assert len(small.pack(envelope(data={"a": "x" * room}), "shop")) == 2048 - HEADER_ALLOWANCE
    with pytest.raises(
        PayloadTooLarge, match=r"2,049 bytes encoded .* limit 2,048 .* publish a reference"
    ) as caught:
        small.pack(envelope(data={"a": "x" * (room + 1)}), "shop")
    assert (caught.value.size, caught.value.limit) == (2049, 2048)


def test_a_payload_that_was_not_encoded_cannot_be_packed(codec: Codec) -> None:
    with pytest.raises(PayloadNotSerializable, match="payloads come from Codec"):
        codec.pack(envelope(data={"a": object()}), "shop")


def test_a_foreign_event_needs_none_of_our_attributes(codec: Codec) -> None:
    found = codec.unpack(message(source="https://shop.example/orders", extra=1, subject="s"))
    assert found == Envelope(
        id="a1",
        name="User.x",
        version=1,
        data={"a": 1},
        published_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
        operation_id="a1",
        source="https://shop.example/orders",
    )
    assert codec.unpack(codec.pack(found, "shop"), namespace="shop") == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T13:00:00.123456789+01:00", datetime(2026, 1, 31, 12, 0, 0, 123000, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("1970-01-01T00:00:00-00:00", datetime(1970, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999Z", datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
    ],
)
def test_any_offset_and_precision_of_time_is_read(text: str, expected: datetime) -> None:
    found = Codec().unpack(message(time=text)).published_at
    assert found == expected
    assert found.tzinfo is UTC


def test_a_byte_order_mark_is_tolerated(codec: Codec) -> None:
    assert codec.unpack(b"\xef\xbb\xbf" + message()).id == "a1"


def deep_document() -> bytes:
    return message(data=None)[:-1] + b',"data":' + b'{"a":' * 150 + b"1" + b"}" * 151


BAD_MESSAGES: list[tuple[bytes, type[CodecError], str]] = [
    (b"", Undecodable, "empty payload"),
    (b"\xef\xbb\xbf", Undecodable, "empty payload"),
    (b"abc", Undecodable, "Expecting value: line 1 column 1"),
    (b"  ", Undecodable, "Expecting value"),
    (b'{"a":"\xff"}', Undecodable, "invalid UTF-8 at byte 6"),
    (b'{"a":1', Undecodable, "not JSON"),
    (b'{"a":NaN}', Undecodable, "NaN is no JSON number"),
    (b"\x80\x04K\x05.", Undecodable, "invalid UTF-8 at byte 0"),
    (b"[" * 2**20, Undecodable, "nesting is deeper than 101"),
    (b'{"a":' * 2**17, Undecodable, "nesting is deeper than 101"),
    (deep_document(), Undecodable, "nesting is deeper than 101"),
    (b'"' + b'\\"' * 2**19, Undecodable, "not JSON: Unterminated string"),
    (b'"' + b'\\"[' * 2**18, Undecodable, "not JSON: Unterminated string"),
    (b"[]", InvalidEnvelope, "envelope must be an object, got list"),
    (b"1", InvalidEnvelope, "envelope must be an object, got int"),
    (b"null", InvalidEnvelope, "envelope must be an object, got NoneType"),
    (message(id=None), InvalidEnvelope, "missing field 'id'"),
    (message(type=None), InvalidEnvelope, "missing field 'type'"),
    (message(time=None), InvalidEnvelope, "missing field 'time'"),
    (message(specversion=None), InvalidEnvelope, "missing field 'specversion'"),
    (message(data=None, time=None), InvalidEnvelope, "missing field 'time', missing field 'data'"),
    (message(specversion="2.0"), InvalidEnvelope, "specversion is '2.0'"),
    (message(id=5), InvalidEnvelope, "id 5 cannot be used"),
    (message(id="a b"), InvalidEnvelope, "id 'a b' cannot be used"),
    (message(id="a" * 65), InvalidEnvelope, "cannot be used"),
    (message(type="a..b"), InvalidEnvelope, "empty token"),
    (message(type="a.*"), InvalidEnvelope, "the wildcard '*'"),
    (message(type=7), InvalidEnvelope, "non-empty string, got 7"),
    (message(time="yesterday"), InvalidEnvelope, "time is 'yesterday'"),
    (message(time="2026-01-31T12:00:00"), InvalidEnvelope, "with an offset"),
    (message(time="0001-01-01T00:00:00+10:00"), InvalidEnvelope, "time is '0001"),
    (message(time=1767225600), InvalidEnvelope, "time must be a string, got int"),
    (message(data=[1]), InvalidEnvelope, "data must be an object, got list"),
    (message(data=False), InvalidEnvelope, "data must be an object, got bool"),
    (message(dataversion=0), InvalidEnvelope, "dataversion is 0"),
    (message(dataversion="1"), InvalidEnvelope, "dataversion is '1'"),
    (message(dataversion=True), InvalidEnvelope, "dataversion is True"),
    (message(chaindepth=-1), InvalidEnvelope, "chaindepth is -1"),
    (message(operationid=""), InvalidEnvelope, "operationid '' cannot be used"),
    (message(parentids="b,c d"), InvalidEnvelope, "parentids 'c d' cannot be used"),
    (message(parentids="b,a1"), InvalidEnvelope, "a1 is its own parent"),
    (message(parentids=["b"]), InvalidEnvelope, "parentids must be a string, got list"),
    (message(partitionkey=5), InvalidEnvelope, "partitionkey must be a string"),
    (message(source=5), InvalidEnvelope, "source must be a string"),
    (message(traceparent=5), InvalidEnvelope, "traceparent must be a string"),
    (message(datacontenttype="application/x-yaml"), Undecodable, "unsupported content type"),
    (message()[:-1] + b',"x":1e999}', InvalidEnvelope, "['x'] is inf"),
    (message()[:-1] + b',"x":' + b"1" * 100_000 + b"}", InvalidEnvelope, "a number has too many digits"),
    (message(data={"n": 2**63}), InvalidEnvelope, "['data']['n'] needs 64 bits"),
    (message(data={"n": -(2**63) - 1}), InvalidEnvelope, "['data']['n'] needs 64 bits"),
    (message(data={"n": 10**30}), InvalidEnvelope, "['data']['n'] needs 100 bits"),
    (message(data={"a\0": 1}), InvalidEnvelope, "['data'] key 'a\\x00' contains NUL"),
    (message(data={"a": ["\ud800"]}), InvalidEnvelope, "['data']['a'][0] has the lone surrogate"),
]


@pytest.mark.parametrize(("body", "kind", "text"), BAD_MESSAGES, ids=[row[2] for row in BAD_MESSAGES])
def test_a_message_that_is_no_event_is_refused_with_the_reason(
    codec: Codec, body: bytes, kind: type[CodecError], text: str
) -> None:
    with pytest.raises(CodecError) as caught:
        codec.unpack(body)
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_brackets_inside_strings_are_no_nesting(codec: Codec) -> None:
    text = '[{"\\' * 500
    assert codec.unpack(message(data={"a": text})).data == {"a": text}


def test_many_small_objects_are_no_nesting(codec: Codec) -> None:
    data = {"items": [{"a": [1]}] * 500}
    assert codec.unpack(message(data=data)).data == data


CONTRADICTIONS: list[tuple[dict[str, Any], type[CodecError] | None, str]] = [
    ({"headers": {"Nats-Msg-Id": "a1"}}, None, ""),
    ({"headers": {}}, None, ""),
    (
        {"headers": {"Nats-Msg-Id": "b2"}},
        InvalidEnvelope,
        "id 'a1' differs from the message's Nats-Msg-Id 'b2'",
    ),
    ({"subject": "shop.User.x"}, None, ""),
    ({"subject": "shop.User.x", "namespace": "shop"}, None, ""),
    ({"subject": "shop.User.y"}, InvalidEnvelope, "type 'User.x' on subject 'shop.User.y'"),
    ({"subject": "shop.User.x", "namespace": "blog"}, InvalidEnvelope, "on subject 'shop.User.x'"),
    ({"subject": "shop.Other.User.x", "namespace": "shop"}, InvalidEnvelope, "on subject"),
    ({"headers": {"Content-Type": "application/cloudevents+json; charset=utf-8"}}, None, ""),
    ({"headers": {"content-type": "application/json"}}, None, ""),
    ({"headers": {"Content-Type": "application/x-python-pickle"}}, Undecodable, "unsupported content type"),
    ({"headers": {"content-type": "application/msgpack"}}, Undecodable, "'application/msgpack'"),
]


@pytest.mark.parametrize(("carrier", "kind", "text"), CONTRADICTIONS)
def test_the_message_must_agree_with_its_subject_and_headers(
    codec: Codec, carrier: dict[str, Any], kind: type[CodecError] | None, text: str
) -> None:
    if kind is None:
        assert codec.unpack(message(), **carrier).id == "a1"
        return
    with pytest.raises(kind) as caught:
        codec.unpack(message(), **carrier)
    assert text in str(caught.value)


@pytest.mark.parametrize("fast", [True, False])
@settings(deadline=None)
@given(data=st.binary() | st.text().map(str.encode) | plain.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_but_an_error_of_ours(fast: bool, data: bytes) -> None:
    found = codec_module.orjson
    codec_module.orjson = found if fast else None
    try:
        with pytest.raises(CodecError):
            SHARED.unpack(data)
    finally:
        codec_module.orjson = found


@pytest.fixture
def many_threads() -> Iterator[int]:
    """Switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield 8
    sys.setswitchinterval(before)


def test_threads_that_meet_a_class_for_the_first_time_agree(many_threads: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    codec = Codec()
    with ThreadPoolExecutor(many_threads) as pool:
        documents = list(pool.map(lambda _: codec.encode(Everything()), range(32)))
    assert all(document == documents[0] for document in documents)
