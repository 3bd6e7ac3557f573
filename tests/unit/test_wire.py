"""NATS's protocol where we write and read it ourselves."""

import logging
from collections.abc import Mapping

import pytest

from eventdriven_sync.brokers.wire import Listeners, only_id, published


def test_a_message_without_headers_is_a_plain_publication() -> None:
    assert published(("s.t", b"data", "r", None)) == b"PUB s.t r 4\r\ndata\r\n"


def test_a_message_without_reply_and_data_is_a_publication_as_well() -> None:
    assert published(("s.t", b"", "", None)) == b"PUB s.t  0\r\n\r\n"


def test_headers_stand_before_the_data_and_are_counted() -> None:
    command = published(("s", b"data", "r", {"Nats-Msg-Id": "42"}))
    head = b"NATS/1.0\r\nNats-Msg-Id: 42\r\n\r\n"
    assert command == b"HPUB s r %d %d\r\n%bdata\r\n" % (len(head), len(head) + 4, head)


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb"])
def test_a_header_with_a_line_break_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        published(("s", b"", "", {"Name": value}))


def test_headers_that_are_the_id_alone_are_read_without_a_parser() -> None:
    assert only_id(b"NATS/1.0\r\nNats-Msg-Id: 42\r\n\r\n") == {"Nats-Msg-Id": "42"}


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"NATS/1.0 100 Idle\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: 42\r\nOther: 1\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: a b\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: \xff\r\n\r\n",
    ],
)
def test_other_headers_are_left_to_the_parser(headers: bytes) -> None:
    assert only_id(headers) is None


def test_a_listener_hears_its_subscription_until_it_is_removed() -> None:
    heard: list[tuple[str, bytes, Mapping[str, str], str]] = []
    listeners = Listeners()
    listeners.add(7, lambda *message: heard.append(message))
    assert listeners.tell(7, b"s", b"d", {"A": "b"}, b"r")
    assert not listeners.tell(8, b"s", b"d", {}, b"r")
    listeners.remove(7)
    assert not listeners.tell(7, b"s", b"d", {}, b"r")
    assert heard == [("s", b"d", {"A": "b"}, "r")]


def test_a_listener_that_fails_does_not_end_the_reader(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*message: object) -> None:
        raise LookupError("no")

    listeners = Listeners()
    listeners.add(1, fail)
    with caplog.at_level(logging.ERROR):
        assert listeners.tell(1, b"\xff", b"", {}, b"")
    assert "a message could not be taken" in caplog.text
