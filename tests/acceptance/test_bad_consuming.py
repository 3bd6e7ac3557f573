"""Messages of foreign and old publishers, on real servers: what becomes of each, and of those behind it."""

import asyncio
import json
import pickle
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import attrs
import nats
import pymongo
import pytest

from eventdriven_sync import EventBus, Settings, Worker, current_envelope, event
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.records import Delivery
from eventdriven_sync.store import DeliveryQuery
from tests.polling import eventually

MEBIBYTE = 1024 * 1024


@event("Foreign.sent")
@attrs.frozen(kw_only=True)
class Sent:
    number: int
    items: list[int] = attrs.field(factory=list)


@attrs.frozen
class Message:
    """A message, and what its delivery must say: reason, error class and fact; none for a success."""

    title: str
    data: bytes
    reason: str = ""
    error: str = ""
    fact: str = ""
    headers: bytes = b""


def envelope(number: int = 1, /, **changes: Any) -> bytes:
    """A CloudEvent; None leaves an attribute out."""
    known: dict[str, Any] = {
        "specversion": "1.0",
        "id": f"foreign-{uuid.uuid4().hex[:12]}",
        "type": "Foreign.sent",
        "time": "2026-01-31T12:00:00Z",
        "data": {"number": number},
    }
    return json.dumps({k: v for k, v in (known | changes).items() if v is not None}).encode()


def headers(*lines: bytes) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def bad(
    reason: str, error: str, *rows: tuple[str, bytes, str] | tuple[str, bytes, str, bytes]
) -> list[Message]:
    return [Message(row[0], row[1], reason, error, row[2], *row[3:]) for row in rows]


UNDECODABLE = bad(
    "undecodable",
    "Undecodable",
    ("text", b"hello", "not JSON: Expecting value: line 1 column 1"),
    ("nothing", b"", "empty payload"),
    ("only a byte order mark", b"\xef\xbb\xbf", "empty payload"),
    ("invalid UTF-8", b'{"a":"\xff"}', "invalid UTF-8 at byte 6"),
    ("UTF-16", "{}".encode("utf-16"), "invalid UTF-8 at byte 0"),
    ("gzip", b"\x1f\x8b\x08\x00", "invalid UTF-8 at byte 1"),
    ("cut off", envelope()[:-5], "not JSON"),
    ("two objects", envelope() + envelope(), "not JSON: Extra data"),
    ("NaN", envelope().replace(b'"number": 1', b'"number": NaN'), "NaN is no JSON number"),
    ("a bomb of arrays", b"[" * (MEBIBYTE - 1), "nesting is deeper than 101"),
    ("a bomb of objects", b'{"a":' * 200_000, "nesting is deeper than 101"),
    ("pickle", pickle.dumps({"number": 1}), "invalid UTF-8"),
    (
        "pickle by its type",
        envelope(),
        "unsupported content type 'application/x-python-pickle'",
        headers(b"Content-Type: application/x-python-pickle"),
    ),
    (
        "msgpack by its type",
        envelope(),
        "unsupported content type 'application/msgpack'",
        headers(b"content-type: application/msgpack"),
    ),
    ("yaml inside", envelope(datacontenttype="application/yaml"), "datacontenttype is 'application/yaml'"),
    ("odd headers", b"x", "not JSON", headers(b"$a.b: \xff\xfe", b"N\0L: a\0b", b": v")),
    ("thousands of headers", b"x", "not JSON", headers(*(b"H%d: v" % n for n in range(3000)))),
    ("broken headers", b"x", "not JSON", b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
)

INVALID_ENVELOPES = bad(
    "invalid",
    "InvalidEnvelope",
    ("a list", b"[]", "envelope must be an object, got list"),
    ("a number", b"1", "envelope must be an object, got int"),
    ("null", b"null", "envelope must be an object, got NoneType"),
    ("an empty object", b"{}", "missing field 'specversion', missing field 'id', missing field 'type'"),
    ("no id", envelope(id=None), "missing field 'id'"),
    ("no type", envelope(type=None), "missing field 'type'"),
    ("no time", envelope(time=None), "missing field 'time'"),
    ("no data", envelope(data=None), "missing field 'data'"),
    ("another specification", envelope(specversion="2.0"), "specversion is '2.0'"),
    ("an id with NUL", envelope(id="a\0"), "id 'a\\x00' cannot be used"),
    ("an id that is an expression", envelope(id={"$ne": 1}), "id {'$ne': 1} cannot be used"),
    ("a type of another subject", envelope(type="Foreign.other"), "type 'Foreign.other' on subject"),
    (
        "another message id",
        envelope(id="mine"),
        "id 'mine' differs from the message's Nats-Msg-Id 'yours'",
        headers(b"Nats-Msg-Id: yours"),
    ),
    ("version 0", envelope(dataversion=0), "dataversion is 0"),
    ("its own parent", envelope(id="me", parentids="you,me"), "event me is its own parent"),
    (
        "a time without offset",
        envelope(time="2026-01-31T12:00:00"),
        "time is '2026-01-31T12:00:00': it must be RFC 3339",
    ),
    (
        "a time beyond the calendar",
        envelope(time="9999-12-31T23:59:59-01:00"),
        "time is '9999-12-31T23:59:59-01:00'",
    ),
    ("data as list", envelope(data=[1]), "data must be an object, got list"),
    (
        "a number of 100,000 digits",
        envelope().replace(b'"number": 1', b'"number": ' + b"1" * 100_000),
        "a number has too many digits",
    ),
    (
        "a number beyond floats",
        envelope().replace(b'"number": 1', b'"number": 1e999999'),
        "['data']['number'] is inf",
    ),
    ("70 bits", envelope(2**69), "['data']['number'] needs 70 bits"),
    ("NUL in a key", envelope(data={"a\0": 1, "number": 1}), "contains NUL"),
    ("a lone surrogate", envelope(data={"number": 1, "a": "\ud800"}), "['data']['a'] has the lone surrogate"),
)

INVALID_PAYLOADS = bad(
    "invalid",
    "PayloadInvalid",
    ("a payload of another type", envelope(data={"number": "x"}), "number: expected int, got str 'x'"),
    ("a payload without its field", envelope(data={"items": []}), "number: required field is missing"),
    ("a wrong item", envelope(data={"number": 1, "items": [1, None]}), "items[1]: expected int, got None"),
)

NEWER = bad(
    "unknown_version",
    "UnknownVersion",
    ("a newer version", envelope(dataversion=2), "has version 2, this worker knows 1: deploy the newer code"),
)

GOOD = [
    Message("a plain foreign event", envelope(1)),
    Message("a byte order mark before it", b"\xef\xbb\xbf" + envelope(2)),
    Message("a header named Status", envelope(3), headers=headers(b"Status: 404")),
    Message("the status line of no messages", envelope(4), headers=b"NATS/1.0 404 No Messages\r\n\r\n"),
    Message("a time in the future", envelope(5, time="2999-01-01T00:00:00Z")),
    Message("the time of 1970", envelope(6, time="1970-01-01T00:00:00Z")),
    Message("the last moment there is", envelope(7, time="9999-12-31T23:59:59.999Z")),
    Message("an unknown parent and operation", envelope(8, parentids="nobody", operationid="nothing")),
    Message("10,000 parents", envelope(9, parentids=",".join(f"p{n}" for n in range(10_000)))),
    Message("headers that are no UTF-8", envelope(10), headers=headers(b"X-Name: \xff\xfe")),
    Message("broken headers of a good event", envelope(11), headers=b"NATS/1.0 \xff\xff\r\n\r\n"),
    Message(
        "attributes and fields nobody knows",
        envelope(12, whatever=[1], data={"number": 12, "$set": {"a.b": ""}}),
    ),
    Message("the deepest chain there is", envelope(13, chaindepth=2**31 - 1)),
    Message("a key as given twice", envelope(99)[:-1] + b',"data":{"number":14}}'),
    Message("a strange source", envelope(15, source="\0\u202e" * 1000)),
]

BAD = [*UNDECODABLE, *INVALID_ENVELOPES, *INVALID_PAYLOADS, *NEWER]


def send(port: int, subject: bytes, messages: list[Message]) -> None:
    """Publish as any program can, with nothing in between that would refuse it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        for message in messages:
            total = len(message.headers) + len(message.data)
            sizes = b"%d %d" % (len(message.headers), total) if message.headers else b"%d" % total
            verb = b"HPUB" if message.headers else b"PUB"
            connection.sendall(b"%s %s %s\r\n" % (verb, subject, sizes))
            connection.sendall(message.headers + message.data + b"\r\n")
        connection.sendall(b"PING\r\n")
        with connection.makefile("rb") as lines:
            while (line := lines.readline()) != b"PONG\r\n":
                assert line.startswith(b"INFO"), line


class Reception:
    """A worker that got every message of this file, each followed by a good one."""

    def __init__(self, bus: EventBus, port: int) -> None:
        self.bus = bus
        self.seen: list[int] = []
        self.ids: dict[int, str] = {}
        self.healthy = [Message("healthy", envelope(1000 + n, id=f"healthy-{n}")) for n in range(len(BAD))]

        @bus.group("Inbox").handler(Sent)
        def take(sent: Sent) -> None:
            self.seen.append(sent.number)
            running = current_envelope()
            assert running is not None
            self.ids[sent.number] = running.id

        self.worker = Worker(bus, threads=4, grace=2.0).start()
        mixed = [message for pair in zip(BAD, self.healthy, strict=True) for message in pair] + GOOD
        send(port, f"{bus.settings.namespace}.Foreign.sent".encode(), mixed)
        self._places = {message.title: number for number, message in enumerate(mixed, 1)}
        eventually(lambda: self.unacknowledged == 0 and len(self.settled) == len(mixed), timeout=30)

    @property
    def unacknowledged(self) -> int:
        name = f"{self.bus.settings.namespace}_Foreign"
        state = self.bus.broker.consumer_state(name, "Inbox__take", timeout=5)
        assert state is not None
        return state.pending + state.ack_pending

    @property
    def settled(self) -> list[Delivery]:
        query = DeliveryQuery(states=("dead", "succeeded"), limit=10_000)
        return self.bus.store.deliveries.find(query)

    def letter(self, message: Message) -> Delivery:
        """The dead letter of a message: by its place in the stream, or by its id if that can be read."""
        place = f"_Foreign-{self._places[message.title]}-"
        given = (
            json.loads(message.data)["id"] if message.error in ("PayloadInvalid", "UnknownVersion") else place
        )
        found = next(letter for letter in self.bus.dead_letters.find(limit=1000) if given in letter.id)
        return self.bus.dead_letters.get(found.id)


@pytest.fixture(scope="module")
def reception(servers: DevServers, mongo_client: pymongo.MongoClient[Any]) -> Iterator[Reception]:
    database = f"test_{uuid.uuid4().hex[:12]}"
    settings = Settings(
        nats=servers.nats_url,
        mongo=servers.mongo_url(database),
        namespace=f"t{uuid.uuid4().hex[:12]}",
        version_grace=0,
    )
    with EventBus(settings=settings) as bus:
        reception = Reception(bus, servers.nats.port)
        yield reception
        reception.worker.stop()
    mongo_client.drop_database(database)


@pytest.mark.parametrize("message", BAD, ids=[message.title for message in BAD])
def test_a_bad_message_is_a_dead_letter_with_its_reason_and_its_bytes(
    reception: Reception, message: Message
) -> None:
    letter = reception.letter(message)
    failure = letter.failures[-1]
    assert (letter.state, letter.reason, failure.error_type) == ("dead", message.reason, message.error)
    assert message.fact in failure.message
    assert len(letter.failures) == 1, "it is not tried again"
    if letter.event is None:
        assert letter.raw is not None
        assert letter.raw.data == message.data
        assert letter.raw.subject == f"{reception.bus.settings.namespace}.Foreign.sent"
    else:
        assert letter.event.data == json.loads(message.data)["data"]


def test_no_handler_starts_for_a_bad_message_and_every_message_behind_one_is_handled(
    reception: Reception,
) -> None:
    expected = [1000 + number for number in range(len(BAD))] + list(range(1, len(GOOD) + 1))
    assert sorted(reception.seen) == sorted(expected)
    assert reception.unacknowledged == 0
    assert reception.bus.broker.status().rebuilt == 0, "the connection survived all of them"


@pytest.mark.parametrize("number", range(1, len(GOOD) + 1), ids=[message.title for message in GOOD])
def test_what_only_looks_bad_is_handled(reception: Reception, number: int) -> None:
    delivery = reception.bus.dead_letters.get(f"Inbox.take:{reception.ids[number]}")
    assert (delivery.state, delivery.failures) == ("succeeded", ())


def test_a_message_that_comes_again_after_its_success_is_acknowledged_and_not_handled(
    reception: Reception, servers: DevServers
) -> None:
    again, behind = envelope(1000, id="healthy-0"), envelope(2000, id="behind-the-repeated")
    subject = f"{reception.bus.settings.namespace}.Foreign.sent".encode()
    send(servers.nats.port, subject, [Message("again", again), Message("behind", behind)])
    eventually(lambda: 2000 in reception.seen and reception.unacknowledged == 0)
    assert reception.seen.count(1000) == 1


def test_subjects_that_are_no_text_or_nobodys_stop_nothing(reception: Reception, servers: DevServers) -> None:
    namespace = reception.bus.settings.namespace.encode()
    for subject in (b".Foreign.\xff\xfe", b".Foreign.\xc3\xa9", b".Foreign.sent.more", b".Foreign"):
        send(servers.nats.port, namespace + subject, [Message("stray", b"x")])
    send(servers.nats.port, namespace + b".Foreign.sent", [Message("last", envelope(3000))])
    eventually(lambda: 3000 in reception.seen and reception.unacknowledged == 0)
    assert reception.bus.broker.status().rebuilt == 0


@pytest.mark.parametrize("kind", ["batch", "transactional"])
def test_batches_and_transactions_leave_bad_messages_out(
    servers: DevServers, mongo_url: str, namespace: str, kind: str
) -> None:
    seen: list[int] = []
    settings = Settings(nats=servers.nats_url, mongo=mongo_url, namespace=namespace)
    with EventBus(settings=settings) as bus:
        group = bus.group("Inbox")
        if kind == "batch":
            group.batch_handler(Sent, name="take", max_size=50, max_wait=0.1)(
                lambda batch: seen.extend(sent.number for sent in batch.events)
            )
        else:
            group.handler(Sent, name="take", transactional=True)(
                lambda sent, session: seen.append(sent.number)
            )
        worker = Worker(bus, threads=2, grace=2.0).start()
        few = [envelope(1), b"{", envelope(2), envelope(data={"number": None}), envelope(3)]
        send(servers.nats.port, f"{namespace}.Foreign.sent".encode(), [Message("", data) for data in few])
        letters = eventually(lambda: len(found := bus.dead_letters.find()) == 2 and found, timeout=20)
        eventually(lambda: sorted(seen) == [1, 2, 3])
        assert {letter.reason for letter in letters} == {"undecodable", "invalid"}
        worker.stop()


def test_an_event_deleted_from_the_store_is_handled_from_its_message(
    servers: DevServers,
    mongo_url: str,
    namespace: str,
    mongo_client: pymongo.MongoClient[Any],
    database_name: str,
) -> None:
    seen: list[Sent] = []
    with EventBus(settings=Settings(nats=servers.nats_url, mongo=mongo_url, namespace=namespace)) as bus:
        bus.group("Inbox").handler(Sent, name="take")(seen.append)
        receipt = bus.publish(Sent(number=1))
        assert bus.flush()
        assert mongo_client[database_name].events.delete_many({}).deleted_count == 1
        worker = Worker(bus, threads=1, grace=2.0).start()
        eventually(lambda: seen == [Sent(number=1)])
        delivery = f"Inbox.take:{receipt.id}"
        assert eventually(lambda: bus.store.deliveries.get(delivery)).state == "succeeded"
        worker.stop()


def test_the_broker_confirms_a_foreign_message_that_names_itself_twice_only_once(
    reception: Reception, servers: DevServers
) -> None:
    subject = f"{reception.bus.settings.namespace}.Foreign.sent"

    async def publish() -> list[bool | None]:
        client = await nats.connect(servers.nats_url)
        body, named = envelope(4000, id="named-4000"), {"Nats-Msg-Id": "named-4000"}
        confirmed = [await client.jetstream().publish(subject, body, headers=named) for _ in range(2)]
        await client.close()
        return [each.duplicate for each in confirmed]

    assert asyncio.run(publish()) == [None, True]
    eventually(lambda: 4000 in reception.seen and reception.unacknowledged == 0)
    assert reception.seen.count(4000) == 1
