from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from eventdriven_sync.broker import ConsumerSpec, StreamSpec
from eventdriven_sync.brokers import administration, jetstream
from eventdriven_sync.brokers.administration import Conversation
from eventdriven_sync.brokers.jetstream import ApiError
from eventdriven_sync.errors import (
    BrokerError,
    BrokerPermissionDenied,
    BrokerUnavailable,
    ConfigurationError,
    ConsumerConflict,
    StreamConflict,
    UnsafeStream,
)

STREAM = StreamSpec(name="blog_User", subjects=("blog.User.>",))
CONSUMER = ConsumerSpec(stream=STREAM, name="Blog__update", subjects=("blog.User.named",))

Answer = Mapping[str, Any] | ApiError


def error(err_code: int, code: int = 404) -> ApiError:
    return ApiError("PATH", {"code": code, "err_code": err_code, "description": "no"})


def stream_info(last: int = 0, **config: object) -> dict[str, Any]:
    return {"config": jetstream.stream_config(STREAM) | config, "state": {"last_seq": last}}


def consumer_info(delivered: int = 0, **config: object) -> dict[str, Any]:
    return {
        "stream_name": STREAM.name,
        "name": CONSUMER.name,
        "config": jetstream.consumer_config(CONSUMER) | config,
        "delivered": {"stream_seq": delivered},
    }


def play(
    conversation: Conversation[Any], answers: Mapping[str, Answer | list[Answer]]
) -> tuple[Any, list[str]]:
    """The result and what was asked; each path is answered from ``answers``, lists one after another."""
    left = {path: list(given) if isinstance(given, list) else [given] for path, given in answers.items()}
    asked: list[str] = []
    step: Callable[[], Any] = lambda: next(conversation)  # noqa: E731
    while True:
        try:
            path, _ = step()
        except StopIteration as end:
            return end.value, asked
        asked.append(path)
        queue = next(left[known] for known in left if path.startswith(known))
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(answer, ApiError):
            step = lambda answer=answer: conversation.throw(answer)  # noqa: E731
        else:
            step = lambda answer=answer: conversation.send(dict(answer))  # noqa: E731


# --- messages -----------------------------------------------------------------------------------------


def test_both_forms_of_the_reply_are_read() -> None:
    short = jetstream.parse_ack("$JS.ACK.blog_User.Blog__update.3.17.5.1700000000123456789.2")
    long = jetstream.parse_ack("$JS.ACK._.HASH.blog_User.Blog__update.3.17.5.1700000000123456789.2")
    longest = jetstream.parse_ack("$JS.ACK.d.HASH.blog_User.Blog__update.3.17.5.1700000000123456789.2.rnd")
    at = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert short == long == longest == ("blog_User", 3, 17, at)


@pytest.mark.parametrize(
    "reply",
    ["", "$JS.ACK.", "$JS.ACK.a.b.c.d.e.f.g", "$JS.ACK.1.2", "$JS.ACK.s.c.1.1.1.99999999999999999999999.0"],
)
def test_what_is_no_reply_of_a_consumer_is_none(reply: str) -> None:
    assert jetstream.parse_ack(reply) is None


@pytest.mark.parametrize("text", ["2026-01-02T03:04:05.123456789Z", "2026-01-02T03:04:05.123456Z"])
def test_times_of_the_server_are_read_to_the_microsecond(text: str) -> None:
    assert jetstream.parse_time(text) == datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)


# --- conflicts ----------------------------------------------------------------------------------------


def test_what_we_create_is_what_we_accept() -> None:
    jetstream.check_stream(STREAM, jetstream.stream_config(STREAM))
    jetstream.check_consumer(CONSUMER, jetstream.consumer_config(CONSUMER))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storage", "memory"),
        ("retention", "workqueue"),
        ("retention", "interest"),
        ("persist_mode", "async"),
        ("no_ack", True),
        ("sealed", True),
        ("sources", [{"name": "other"}]),
        ("mirror", {"name": "other"}),
    ],
)
def test_a_stream_that_can_lose_events_is_unsafe(field: str, value: object) -> None:
    with pytest.raises(UnsafeStream, match=f"stream blog_User: {field} is ") as caught:
        jetstream.check_stream(STREAM, jetstream.stream_config(STREAM) | {field: value})
    assert (caught.value.field, caught.value.have) == (field, value)


def test_limits_are_safe_only_if_they_refuse_new_events() -> None:
    limited = jetstream.stream_config(STREAM) | {"max_msgs": 1000}
    jetstream.check_stream(STREAM, limited)
    with pytest.raises(UnsafeStream, match="discard is old, with max_msgs 1000"):
        jetstream.check_stream(STREAM, limited | {"discard": "old"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subjects", ["blog.>"]),
        ("max_age", 0),
        ("num_replicas", 3),
        ("duplicate_window", 1_000_000_000),
    ],
)
def test_a_stream_with_another_setting_is_a_conflict_that_names_the_cure(field: str, value: object) -> None:
    with pytest.raises(
        StreamConflict, match=rf"{field} is .* we need .*nats stream edit blog_User"
    ) as caught:
        jetstream.check_stream(STREAM, jetstream.stream_config(STREAM) | {field: value})
    assert not isinstance(caught.value, UnsafeStream)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ack_wait", 5_000_000_000),
        ("max_ack_pending", 10),
        ("max_deliver", 3),
        ("ack_policy", "none"),
        ("filter_subjects", ["blog.>"]),
        ("deliver_subject", "push.here"),
        ("headers_only", True),
        ("mem_storage", True),
        ("inactive_threshold", 1_000_000_000),
        ("max_batch", 10),
    ],
)
def test_a_consumer_with_another_setting_is_a_conflict(field: str, value: object) -> None:
    with pytest.raises(ConsumerConflict, match=rf"consumer Blog__update .*: {field} is .* we need"):
        jetstream.check_consumer(CONSUMER, jetstream.consumer_config(CONSUMER) | {field: value})


def test_a_filter_that_the_server_reports_as_single_is_the_same() -> None:
    have = jetstream.consumer_config(CONSUMER) | {
        "filter_subjects": None,
        "filter_subject": "blog.User.named",
    }
    jetstream.check_consumer(CONSUMER, have)


@pytest.mark.parametrize(
    ("err_code", "code", "kind"),
    [
        (10039, 503, ConfigurationError),
        (10076, 503, ConfigurationError),
        (10008, 503, BrokerUnavailable),
        (10000, 403, BrokerPermissionDenied),
        (10003, 400, BrokerError),
    ],
)
def test_errors_of_the_api_become_ours(err_code: int, code: int, kind: type[Exception]) -> None:
    translated = jetstream.translate(error(err_code, code), "nats://here")
    assert type(translated) is kind
    assert "nats://here" in str(translated)


# --- conversations -----------------------------------------------------------------------------------------


def test_what_exists_is_only_read() -> None:
    answers = {"CONSUMER.INFO": consumer_info(), "STREAM.INFO": stream_info()}
    _, asked = play(administration.ensure_consumer(CONSUMER), answers)
    assert asked == ["CONSUMER.INFO.blog_User.Blog__update", "STREAM.INFO.blog_User"]


def test_what_is_missing_is_created() -> None:
    answers = {
        "CONSUMER.INFO": error(10014),
        "STREAM.INFO": error(10059),
        "STREAM.CREATE": stream_info(),
        "CONSUMER.CREATE": consumer_info(),
    }
    _, asked = play(administration.ensure_consumer(CONSUMER), answers)
    assert [path.split(".blog")[0] for path in asked] == [
        "CONSUMER.INFO",
        "STREAM.INFO",
        "STREAM.CREATE",
        "CONSUMER.CREATE",
    ]


def test_what_another_process_creates_in_this_moment_is_compared() -> None:
    answers: dict[str, Answer | list[Answer]] = {
        "CONSUMER.INFO": [error(10014), consumer_info(ack_wait=1)],
        "STREAM.INFO": [error(10059), stream_info()],
        "STREAM.CREATE": error(10058, 400),
        "CONSUMER.CREATE": error(10148, 400),
    }
    with pytest.raises(ConsumerConflict, match="ack_wait"):
        play(administration.ensure_consumer(CONSUMER), answers)


def test_a_consumer_ahead_of_a_stream_that_lost_messages_is_created_anew() -> None:
    answers = {
        "CONSUMER.INFO": consumer_info(delivered=100),
        "STREAM.INFO": stream_info(last=40),
        "CONSUMER.DELETE": {"success": True},
        "CONSUMER.CREATE": consumer_info(),
    }
    info, asked = play(administration.ensure_consumer(CONSUMER), answers)
    assert info["delivered"]["stream_seq"] == 0
    assert asked[2:] == ["CONSUMER.DELETE.blog_User.Blog__update", "CONSUMER.CREATE.blog_User.Blog__update"]


def test_lists_are_read_page_by_page() -> None:
    pages: list[Answer] = [
        {"total": 3, "streams": [stream_info(name="blog_A"), stream_info(name="blog_B")]},
        {"total": 3, "streams": [stream_info(name="shop_C")]},
    ]
    found, asked = play(
        administration.streams("blog_"),
        {"STREAM.LIST": pages, "CONSUMER.LIST": {"total": 0, "consumers": None}},
    )
    assert [stream.name for stream in found] == ["blog_A", "blog_B"]
    assert asked.count("STREAM.LIST") == 2
