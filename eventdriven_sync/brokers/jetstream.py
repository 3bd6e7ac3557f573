"""JetStream's wire: what we ask for, what a server's answer means, and where a stream or consumer differs.

Nothing here opens a connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from eventdriven_sync.broker import ConsumerSpec, ConsumerState, Incoming, StreamSpec, StreamState
from eventdriven_sync.errors import (
    BrokerError,
    BrokerPermissionDenied,
    BrokerUnavailable,
    ConfigurationError,
    ConsumerConflict,
    EventDrivenError,
    StreamConflict,
    UnsafeStream,
)

ACK_PREFIX = "$JS.ACK."
# The server remembers message ids this long; our own resending ends far earlier.
DUPLICATE_WINDOW = 120.0
MAX_WAITING = 512

# Error codes of the JetStream API (nats-server, server/errors.json).
NOT_ENABLED = frozenset({10039, 10076})
STREAM_NAME_IN_USE = 10058
SUBJECTS_OVERLAP = 10065
CONSUMER_IN_USE = frozenset({10013, 10148})
# No such stream, consumer, message.
MISSING = frozenset({10059, 10014, 10037})

_KINDS = {503: BrokerUnavailable, 403: BrokerPermissionDenied}
_SUBJECT = re.compile(r"[^\s.*>\x00-\x1f\x7f]+(\.[^\s.*>\x00-\x1f\x7f]+)*")
_V1_TOKENS, _V2_TOKENS = 9, 11


class ApiError(Exception):
    """A request that JetStream answered with an error."""

    def __init__(self, path: str, error: Mapping[str, Any]) -> None:
        super().__init__(f"{error.get('description', 'error')} ({error.get('err_code', 0)})")
        self.path = path
        self.code = int(error.get("code", 0))
        self.err_code = int(error.get("err_code", 0))


@lru_cache(maxsize=4096)
def is_subject(subject: str) -> bool:
    """Whether a message can be sent to it: tokens without blanks, wildcards or line ends."""
    return _SUBJECT.fullmatch(subject) is not None


# --- messages -------------------------------------------------------------------------------------------


class Ack(NamedTuple):
    """What the reply subject of a delivered message says."""

    stream: str
    delivered: int
    sequence: int
    stored_at: datetime


def parse_ack(reply: str) -> Ack | None:
    """Read ``$JS.ACK.<stream>.<consumer>...``: 9 tokens, or 11 and more with domain and account in front."""
    tokens = reply.split(".")
    if len(tokens) >= _V2_TOKENS:
        del tokens[2:4]
    elif len(tokens) != _V1_TOKENS:
        return None
    try:
        microseconds = int(tokens[7]) // 1000
        stored_at = datetime.fromtimestamp(microseconds / 1e6, UTC)
        return Ack(tokens[2], int(tokens[4]), int(tokens[5]), stored_at)
    except (ValueError, OverflowError, OSError):
        return None


def incoming(ack: Ack, subject: str, data: bytes, headers: Mapping[str, str], reply: str) -> Incoming:
    """The message as execution sees it."""
    return Incoming(
        stream=ack.stream,
        sequence=ack.sequence,
        subject=subject,
        data=data,
        headers=headers,
        delivered=ack.delivered,
        stored_at=ack.stored_at,
        reply=reply,
    )


# --- what we ask for ------------------------------------------------------------------------------------


def stream_config(spec: StreamSpec) -> dict[str, object]:
    """The configuration with which the stream is created."""
    return {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "max_consumers": -1,
        "max_age": _nanoseconds(spec.max_age),
        "num_replicas": spec.replicas,
        "duplicate_window": _nanoseconds(min(DUPLICATE_WINDOW, spec.max_age)),
    }


def consumer_config(spec: ConsumerSpec) -> dict[str, object]:
    """The configuration with which the consumer is created."""
    config: dict[str, object] = {
        "name": spec.name,
        "durable_name": spec.name,
        "ack_policy": "explicit",
        "ack_wait": _nanoseconds(spec.ack_wait),
        "max_deliver": -1,
        "max_ack_pending": spec.max_ack_pending,
        "max_waiting": MAX_WAITING,
        "replay_policy": "instant",
        "filter_subjects": list(spec.subjects),
        "deliver_policy": "all",
    }
    if spec.starts_at is not None:
        # The server's clock counts nanoseconds in 64 bits, to the year 2262.
        start = min(spec.starts_at.astimezone(UTC), datetime(2200, 1, 1, tzinfo=UTC))
        config["deliver_policy"] = "by_start_time"
        config["opt_start_time"] = start.isoformat().replace("+00:00", "Z")
    return config


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


# --- what is different ----------------------------------------------------------------------------------


def check_stream(spec: StreamSpec, have: Mapping[str, Any]) -> None:
    """Refuse a stream with other settings than ours.

    Raises:
        UnsafeStream: it can lose accepted events, or keep them from a handler.
        StreamConflict: it differs otherwise.
    """
    for field, value, want in _unsafe_settings(have):
        raise UnsafeStream(
            f"stream {spec.name}: {field} is {value}, we need {want}, because as it is events can be lost; "
            f"delete the stream (the events are in the event store) or use another namespace",
            **_facts(spec.name, field, value, want),
        )
    for field, value, want in _other_settings(spec, have):
        raise StreamConflict(
            f"stream {spec.name}: {field} is {value}, we need {want}; it is never changed silently: "
            f"run `nats stream edit {spec.name}`, adapt the setting of the bus, or use another namespace",
            **_facts(spec.name, field, value, want),
        )


def check_consumer(spec: ConsumerSpec, have: Mapping[str, Any]) -> None:
    """Refuse a consumer with other settings than ours.

    Raises:
        ConsumerConflict: with ``field``, ``have`` and ``want``.
    """
    for field, value, want in _consumer_settings(spec, have):
        if value != want:
            raise ConsumerConflict(
                f"consumer {spec.name} of stream {spec.stream.name}: {field} is {value}, we need {want}; "
                "it is never changed silently (another version of this program may run): adapt the setting, "
                f"or run `nats consumer edit {spec.stream.name} {spec.name}`",
                **_facts(spec.name, field, value, want),
            )


def _facts(name: str, field: str, have: object, want: object) -> dict[str, object]:
    return {"name": name, "field": field, "have": have, "want": want}


def _unsafe_settings(have: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    expected = {
        "retention": ("limits", "limits"),
        "storage": ("file", "file"),
        "persist_mode": ("default", "default"),  # "async" confirms before it writes
        "no_ack": (False, False),
        "sealed": (False, False),
        "mirror": (None, None),
        "sources": (None, None),
    }
    for field, (default, want) in expected.items():
        value = have.get(field) or default
        if value != want:
            yield field, value, want
    limits = [f for f in ("max_msgs", "max_bytes", "max_msgs_per_subject") if have.get(f, -1) > 0]
    if limits and have.get("discard", "old") == "old":
        yield "discard", f"old, with {limits[0]} {have[limits[0]]}", "new, or no limit but max_age"


def _other_settings(spec: StreamSpec, have: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    subjects = have.get("subjects") or []
    if set(subjects) != set(spec.subjects):
        yield "subjects", sorted(subjects), sorted(spec.subjects)
    age = have.get("max_age", 0) / 1e9
    if age != spec.max_age:
        yield "max_age", f"{age:g} s", f"{spec.max_age:g} s"
    if have.get("num_replicas", 1) != spec.replicas:
        yield "num_replicas", have.get("num_replicas", 1), spec.replicas
    window, least = have.get("duplicate_window", 0) / 1e9, min(DUPLICATE_WINDOW, spec.max_age)
    if window < least:
        yield "duplicate_window", f"{window:g} s", f"{least:g} s or more"


def _consumer_settings(spec: ConsumerSpec, have: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    single = have.get("filter_subject")
    subjects = have.get("filter_subjects") or ([single] if single else [])
    yield "filter_subjects", sorted(subjects), sorted(spec.subjects)
    yield "ack_wait", f"{have.get('ack_wait', 0) / 1e9:g} s", f"{spec.ack_wait:g} s"
    yield "max_ack_pending", have.get("max_ack_pending", 0), spec.max_ack_pending
    yield "ack_policy", have.get("ack_policy", "none"), "explicit"
    # With a limit the server skips the message for ever and tells nobody who is not listening.
    yield "max_deliver", have.get("max_deliver", -1), -1
    yield "deliver_subject", have.get("deliver_subject") or None, None
    yield "headers_only", have.get("headers_only", False), False
    yield "mem_storage", have.get("mem_storage", False), False
    for field in ("inactive_threshold", "max_batch", "max_expires", "max_bytes"):
        yield field, have.get(field) or None, None


# --- what the server reports --------------------------------------------------------------------------


def consumer_state(info: Mapping[str, Any], oldest_at: datetime | None) -> ConsumerState:
    """A consumer's backlog from its INFO answer."""
    return ConsumerState(
        stream=info["stream_name"],
        name=info["name"],
        pending=info.get("num_pending", 0),
        ack_pending=info.get("num_ack_pending", 0),
        redelivered=info.get("num_redelivered", 0),
        waiting=info.get("num_waiting", 0),
        oldest_at=oldest_at,
        delivered=info.get("delivered", {}).get("stream_seq", 0),
        acknowledged=info.get("ack_floor", {}).get("stream_seq", 0),
        paused=info.get("paused", False),
        config=info.get("config", {}),
    )


def stream_state(info: Mapping[str, Any], consumers: tuple[ConsumerState, ...]) -> StreamState:
    """A stream from its INFO answer."""
    config, state = info["config"], info.get("state", {})
    return StreamState(
        name=config["name"],
        subjects=tuple(config.get("subjects") or ()),
        messages=state.get("messages", 0),
        size_bytes=state.get("bytes", 0),
        first_sequence=state.get("first_seq", 0),
        last_sequence=state.get("last_seq", 0),
        config=config,
        consumers=consumers,
    )


def has_backlog(info: Mapping[str, Any]) -> bool:
    """Whether the consumer can still deliver something."""
    return bool(info.get("num_pending", 0) or info.get("num_ack_pending", 0))


def is_stalled(info: Mapping[str, Any]) -> bool:
    """Whether it could deliver: messages wait, and the limit of unacknowledged ones is not reached."""
    limit = info["config"].get("max_ack_pending", -1)
    return bool(info.get("num_pending", 0) > 0 and (limit < 0 or info.get("num_ack_pending", 0) < limit))


def is_ahead(consumer: Mapping[str, Any], stream: Mapping[str, Any]) -> bool:
    """Whether a consumer has delivered messages that its stream no longer knows.

    After a power loss a stream can come back shorter than its consumers remember; such a consumer stays
    silent until the stream has caught up.
    """
    delivered = consumer.get("delivered", {}).get("stream_seq", 0)
    return bool(delivered > stream.get("state", {}).get("last_seq", 0))


def parse_time(text: str) -> datetime:
    """A time as the server writes it: RFC 3339 with up to nine decimals."""
    cut = re.sub(r"(\.\d{6})\d+", r"\1", text)
    return datetime.fromisoformat(cut).astimezone(UTC)


def translate(error: ApiError, url: str) -> EventDrivenError:
    """The library's error for an answer of the JetStream API."""
    if error.err_code in NOT_ENABLED:
        return no_jetstream(url)
    kind = _KINDS.get(error.code, BrokerError)
    text = f"NATS at {url} answered {error.path} with: {error}"
    return kind(text, code=error.code, err_code=error.err_code, url=url)


def no_jetstream(url: str) -> ConfigurationError:
    """The error for a server without JetStream."""
    return ConfigurationError(
        f"NATS at {url} runs without JetStream (or this account may not use it): start nats-server with -js, "
        "or enable it for the account",
        field="nats",
        value=url,
    )
