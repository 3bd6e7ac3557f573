"""Foreign bytes, text and JSON: whatever they are, the documented errors and no others, and never for long.

``PYTEST_FUZZ_EXAMPLES`` makes it look further than the few seconds of an ordinary run.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import attrs
import click
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from werkzeug.exceptions import BadRequest

from eventdriven_sync import Settings, event
from eventdriven_sync import codec as codec_module
from eventdriven_sync.brokers.jetstream import parse_ack
from eventdriven_sync.brokers.pulling import Pull
from eventdriven_sync.cli import publishing, words
from eventdriven_sync.cli.options import moment
from eventdriven_sync.codec import Codec
from eventdriven_sync.config import redact
from eventdriven_sync.context import origin_of
from eventdriven_sync.dashboard import parameters
from eventdriven_sync.dashboard.editing import edited_payload
from eventdriven_sync.envelope import Envelope, from_wire
from eventdriven_sync.errors import CodecError, ConfigurationError, InvalidOption, PayloadInvalid
from eventdriven_sync.events import event_type_of
from eventdriven_sync.fingerprint import fingerprint
from eventdriven_sync.redaction import Redaction
from tests.unit.rig import Rig
from tests.unit.test_pulling import Desk

# The deadline is what "never for long" means: of each example, 1 s.
fuzz = settings(
    max_examples=int(os.environ.get("PYTEST_FUZZ_EXAMPLES", "100")),
    deadline=timedelta(seconds=1),
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@event("Fuzz.sent", version=2, key="name")
@attrs.frozen(kw_only=True)
class Sent:
    name: str
    count: int = 0
    share: float = 0.0
    at: datetime | None = None
    ref: UUID | None = None
    tags: tuple[str, ...] = ()
    sizes: Mapping[str, list[int]] = attrs.field(factory=dict)
    free: dict[str, Any] = attrs.field(factory=dict)


KIND = event_type_of(Sent)
CODEC = Codec()
REDACTION = Redaction()

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "65f0000000000000000000aa",
    "source": "/fuzz/Blog/update",
    "type": "Fuzz.sent",
    "time": "2026-01-31T12:00:00.000Z",
    "datacontenttype": "application/json",
    "dataversion": 2,
    "operationid": "65f0000000000000000000ab",
    "parentids": "65f0000000000000000000ac,65f0000000000000000000ad",
    "partitionkey": "ada",
    "chaindepth": 3,
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "data": {
        "name": "ada",
        "count": 1,
        "share": 0.5,
        "tags": ["a"],
        "sizes": {"a": [1]},
        "free": {"x": None},
    },
}
CHAIN = {"operation_id": "o1", "parent_ids": ["p1"], "source": "Blog.update", "depth": 1}

# What parsers stumble over: of JSON, of numbers, of Unicode, of time, of terminals and of URLs.
PIECES = [
    *(
        '"',
        "\\",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "NaN",
        "-Infinity",
        "1e999",
        "-0",
        "0.1e-400",
        "9" * 40,
    ),
    *(
        "\\u0000",
        "\\ud800",
        "\\udc00\\ud800",
        "\x00",
        "\ufeff",
        "\u202e",
        "\x1b[2J",
        "é",
        "😀",
        "\u0130",
        "٣",
        "\r\n",
    ),
    *("9999-12-31T23:59:59+23:59", "0001-01-01T00:00:00-23:59", "T24:00", "30m", "999999999w", "+00:00"),
    *(
        "@",
        "://",
        "mongodb://a:b@",
        ",nats://",
        "password=",
        "token: ",
        "%",
        "$",
        ".",
        "/",
        "*",
        ">",
        "'",
        " ",
    ),
    "$JS.ACK.s.c.1.2.3.99999999999999999999999.0",
]
pieces = st.sampled_from(PIECES)


@st.composite
def mutants(draw: Any, whole: str) -> str:
    """A well-formed text with a few of its parts replaced, repeated, left out or cut off."""
    text = whole
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 12))
        middle = draw(pieces | st.text(max_size=4) | st.just(text[at : at + 40]))
        text = text[:at] + middle + text[at + length :]
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


# Long and regular: what makes a backtracking expression or a nested loop take for ever.
long_texts = st.builds(
    lambda head, piece, times, tail: head + piece * (times // max(len(piece), 1)) + tail,
    st.text(max_size=3) | pieces,
    st.lists(pieces, min_size=1, max_size=3).map("".join),
    st.sampled_from([1000, 30_000, 200_000]),
    st.text(max_size=3) | pieces,
)
texts = st.text() | st.lists(pieces).map("".join) | long_texts
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | pieces
plain = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
)
documents = st.dictionaries(
    st.text(max_size=6) | st.sampled_from(["password", "a.b", "$x"]), plain, max_size=5
)


def overlaid(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A good document with some fields replaced or missing."""
    known = st.sampled_from(sorted(good))
    return st.builds(
        lambda changes, missing: {k: v for k, v in {**good, **changes}.items() if k not in missing},
        st.dictionaries(known | st.text(max_size=5), plain | texts, max_size=3),
        st.sets(known, max_size=1),
    )


def as_bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


messages = (
    st.binary()
    | texts.map(as_bytes)
    | mutants(json.dumps(GOOD)).map(as_bytes)
    | overlaid(GOOD).map(lambda document: json.dumps(document).encode())
)


def only(allowed: type[Exception], step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What it answers; None if it refuses as it says that it does."""
    try:
        return step(*arguments, **options)
    except allowed as error:
        return _refused(error)


def _refused(error: Exception) -> None:
    assert str(error), "it does not say why"


# --- messages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False], ids=["orjson", "json"])
@fuzz
@given(
    data=messages,
    message_id=st.none() | st.just(GOOD["id"]) | texts,
    content_type=st.none() | texts,
    subject=st.none() | st.just("fuzz.Fuzz.sent") | texts,
    namespace=st.none() | st.just("fuzz"),
)
@example(data=json.dumps(GOOD).encode(), message_id=None, content_type=None, subject=None, namespace=None)
def test_a_message_is_an_envelope_or_a_codec_error(
    fast: bool,
    data: bytes,
    message_id: str | None,
    content_type: str | None,
    subject: str | None,
    namespace: str | None,
) -> None:
    found, codec_module.orjson = codec_module.orjson, codec_module.orjson if fast else None
    given_headers = {"Nats-Msg-Id": message_id, "Content-Type": content_type}
    headers = {name: value for name, value in given_headers.items() if value is not None}
    try:
        envelope = only(CodecError, CODEC.unpack, data, headers=headers, subject=subject, namespace=namespace)
    finally:
        codec_module.orjson = found
    if envelope is not None:
        _check_envelope(envelope)


@fuzz
@given(document=plain | overlaid(GOOD))
def test_a_document_is_an_envelope_or_a_codec_error(document: Any) -> None:
    envelope = only(CodecError, from_wire, document)
    if envelope is not None:
        _check_envelope(envelope)


def _check_envelope(envelope: Envelope) -> None:
    """It can be used: compared, encoded, read."""
    assert envelope.published_at.utcoffset() == timedelta(0)
    assert envelope.id
    envelope.content_hash()
    decoded = only(PayloadInvalid, CODEC.decode, KIND, envelope.data)
    assert decoded is None or isinstance(decoded, Sent)


@fuzz
@given(data=plain | overlaid(GOOD["data"]))
def test_a_payload_is_an_event_or_invalid(data: Any) -> None:
    decoded = only(PayloadInvalid, CODEC.decode, KIND, data)
    assert decoded is None or CODEC.encode(decoded)


@fuzz
@given(data=messages, subject=st.just("rig.Fuzz.sent") | texts, delivered=st.integers(1, 2))
def test_whatever_a_consumer_gets_is_settled(data: bytes, subject: str, delivered: int) -> None:
    rig = Rig()
    try:
        handler = rig.handler(lambda e: None, Sent, name="keep")
        attempt = rig.arrived(handler, data, subject=subject, delivered=delivered)
        rig.executor.read(attempt)
        (admitted,) = rig.settler.admit([attempt])
        rig.settler.settle([(admitted, rig.executor.run(admitted))])
        assert rig.state(attempt) in ("succeeded", "dead", "retrying")
        assert rig.hand.finished == [1]
    finally:
        rig.close()


@fuzz
@given(
    subject=texts,
    data=st.binary(max_size=20),
    headers=st.dictionaries(
        st.sampled_from(["Status", "Description", "Nats-Pending-Messages", "Nats-Msg-Id"])
        | st.text(max_size=9),
        texts | st.sampled_from(["100", "404", "408", "409", "503"]),
        max_size=4,
    ),
    reply=texts | mutants("$JS.ACK.blog_User.Blog__update.1.2.3.1700000000000000000.0"),
)
def test_whatever_comes_to_the_inbox_of_a_pull_is_taken_or_ignored(
    subject: str, data: bytes, headers: dict[str, str], reply: str
) -> None:
    desk = Desk()
    pull: Pull = desk.pull
    pull.opened("inbox")
    pull.arrived(subject, data, headers, reply)
    desk.run_soon()
    for incoming in desk.delivered:
        assert parse_ack(incoming.reply)
        assert incoming.stored_at.utcoffset() == timedelta(0)


@fuzz
@given(chain=plain | overlaid(CHAIN), key=st.just("") | texts)
def test_a_chain_of_another_process_is_gone_on_with_or_an_invalid_option(chain: Any, key: str) -> None:
    only(InvalidOption, origin_of, chain, idempotency_key=key)


# --- configuration and command line -------------------------------------------------------------------------

VARIABLES = sorted(f"EVENTDRIVEN_{field.name.upper()}" for field in attrs.fields(Settings))


@fuzz
@given(
    environ=st.dictionaries(
        st.sampled_from(VARIABLES) | st.text(max_size=12).map("EVENTDRIVEN_{}".format),
        texts | mutants("nats://ada:secret@one:4222,nats://two") | mutants("mongodb://ada:secret@one/blog"),
        max_size=3,
    )
)
def test_an_environment_is_settings_or_a_configuration_error(environ: dict[str, str]) -> None:
    made = only(ConfigurationError, Settings.from_env, environ)
    assert made is None or repr(made)


@fuzz
@given(
    url=texts | mutants("mongodb://ada:hunter2@one,two/blog?authSource=admin&tlsCertificateKeyFilePassword=x")
)
def test_any_text_can_be_shown_as_a_url_without_its_password(url: str) -> None:
    assert isinstance(redact(url), str)


@fuzz
@given(password=st.text("abcXYZ019:/?#@!$&'()*+,;=%^", min_size=6, max_size=30))
@example(password="hunter2@://@,nats://x")
def test_a_password_is_hidden_whatever_it_consists_of(password: str) -> None:
    assert password not in redact(f"nats://ada:{password}@broker:4222")


@fuzz
@given(text=texts | mutants("2026-01-31T12:00:00+01:00"))
def test_any_text_is_a_time_or_no_time(text: str) -> None:
    assert (only(click.BadParameter, moment, text) or _EPOCH).tzinfo is not None
    assert (only(InvalidOption, parameters.moment, "since", text) or _EPOCH).tzinfo is not None


_EPOCH = datetime.fromisoformat("2026-01-01T00:00:00Z")


@fuzz
@given(text=texts | mutants(json.dumps(GOOD["data"])) | plain.map(json.dumps))
def test_any_text_is_a_payload_or_a_wrong_call(text: str) -> None:
    only(click.UsageError, publishing._payload, text, None)
    only(BadRequest, only, InvalidOption, parameters.payload_fields, "fields", text)
    only(InvalidOption, edited_payload, text, shown={"name": "***"}, stored={"name": "ada"})


@fuzz
@given(text=texts)
def test_text_on_a_terminal_is_only_text(text: str) -> None:
    shown = [words.clean(text), *words.clean_lines(text).split("\n"), words.first_line(text)]
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u202e]", line) for line in shown)
    words.did_you_mean(text[:200], ["publish", "dead", "audit"])


# --- what is kept and shown ---------------------------------------------------------------------------------


@fuzz
@given(text=texts | mutants('{"password": "hunter2", "user": "ada"} token=abc Authorization: Bearer abc.def'))
def test_any_text_can_be_redacted(text: str) -> None:
    shown = REDACTION.text(text, secrets=["hunter2"])
    assert "hunter2" not in shown
    shown.encode()
    assert re.fullmatch("[0-9a-f]{12}", fingerprint("ValueError", text))


@fuzz
@given(document=documents | overlaid(GOOD))
def test_any_document_can_be_redacted(document: dict[str, Any]) -> None:
    json.dumps(REDACTION.document(document)).encode()
